//! How a machine ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineEnd {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    GuestPanic {
        /// The text behind `Kernel panic - not syncing:`, where a console showed it.
        message: Option<String>,
    },
    /// A vCPU met a fault that it could not deliver.
    TripleFault,
    /// KVM could not go on.
    Fault(VcpuFault),
}

/// A vCPU that KVM gave up on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuFault {
    /// Which one.
    pub vcpu: u32,
    /// What KVM said.
    pub reason: String,
    /// The vCPU's registers, a few lines of text.
    pub registers: String,
}

impl fmt::Display for MachineEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Reset => f.write_str("reset"),
            Self::GuestPanic { message: None } => f.write_str("the guest's kernel panicked"),
            Self::GuestPanic {
                message: Some(message),
            } => write!(f, "the guest's kernel panicked: {message}"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::Fault(fault) => write!(f, "vCPU {} failed: {}", fault.vcpu, fault.reason),
        }
    }
}
