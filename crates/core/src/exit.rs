use std::fmt;

use serde::{Deserialize, Serialize};

/// How a virtual machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum VmExit {
    /// The guest powered itself off (ACPI S5).
    PoweredOff,
    /// The guest asked for a reset (a reboot).
    Reset,
    /// The guest's kernel panicked.
    GuestPanic(GuestPanic),
    /// A guest CPU met a fault that it could not deliver; on real hardware it would have reset.
    TripleFault,
    /// The caller ended it: `kill`, a graceful stop whose grace period ran out, or a dropped handle.
    Killed,
    /// The process that runs the guest failed or was ended by somebody else.
    MonitorFailure(MonitorFailure),
}

/// What is known of a panic of the guest's kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestPanic {
    /// The text behind `Kernel panic - not syncing:`, where the console showed it; at most 1 KiB.
    pub message: Option<String>,
}

/// What is known of the end of a monitor process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorFailure {
    /// What happened, such as `killed by signal 9`.
    pub reason: String,
    /// The end of what the monitor wrote to its error output; at most 16 KiB.
    pub last_words: String,
}

impl VmExit {
    /// Whether the guest ended of its own accord and without a fault: powered off or reset.
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::PoweredOff | Self::Reset)
    }
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::GuestPanic(GuestPanic {
                message: Some(message),
            }) => {
                write!(f, "the guest's kernel panicked: {message}")
            }
            Self::GuestPanic(_) => f.write_str("the guest's kernel panicked"),
            Self::TripleFault => f.write_str("the guest met a triple fault"),
            Self::Killed => f.write_str("the virtual machine was killed"),
            Self::MonitorFailure(failure) => write!(f, "the monitor failed: {failure}"),
        }
    }
}

impl fmt::Display for MonitorFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        if !self.last_words.trim().is_empty() {
            write!(f, "; its last words: {}", self.last_words.trim())?;
        }
        Ok(())
    }
}
