//! What the engine that carries a plan out can tell: how a VM ended, and why something failed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a VM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineEnd {
    /// The guest powered off.
    PoweredOff,
    /// The library asked for it.
    Killed,
    /// The framework gave up.
    Failed(String),
}

/// Why the engine could not do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFailure {
    /// What kind of failure.
    pub kind: FailureKind,
    /// What happened, in the framework's words where it is the framework's failure.
    pub reason: String,
    /// What to do.
    pub fix: String,
}

/// Kinds of [`EngineFailure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No VM can be run: the entitlement is missing, or virtualization is.
    Unavailable,
    /// This VM cannot be run on this host.
    Unsupported,
    /// The framework refused or failed.
    Framework,
    /// The VM is in another state than the request needs.
    State,
    /// Nobody listens on the port.
    NobodyListens,
    /// The message does not fit the state of the conversation.
    Protocol,
}

impl EngineFailure {
    /// A failure of this kind.
    pub fn new(kind: FailureKind, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
            fix: fix.into(),
        }
    }
}

impl fmt::Display for EngineFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.reason, self.fix)
    }
}

impl std::error::Error for EngineFailure {}
