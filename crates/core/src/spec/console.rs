//! The console of a VM.

use serde::{Deserialize, Serialize};

/// The guest's console: a serial port and, where the backend has it, a virtio console. Output of
/// both is one stream; input goes to the one that the kernel command line names last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSpec {
    /// Whether there is a console at all.
    pub enabled: bool,
    /// Which device is given the input.
    pub input: ConsoleInput,
    /// The size of the terminal at start, where it is known.
    pub window_size: Option<WindowSize>,
}

impl Default for ConsoleSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            input: ConsoleInput::Serial,
            window_size: None,
        }
    }
}

/// The console device that is given the host's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleInput {
    /// The first serial port (`ttyS0` on x86).
    #[default]
    Serial,
    /// The virtio console (`hvc0`).
    Virtio,
}

/// The size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}
