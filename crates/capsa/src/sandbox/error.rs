use capsa_agent_client::AgentError;
use capsa_core::{BootPhase, Error};

/// What can go wrong with a sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The virtual machine: a setting, its start, its end.
    #[error(transparent)]
    Vm(#[from] Error),
    /// The agent in the guest: a command, a file.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

impl SandboxError {
    /// How far a start came that failed.
    pub fn phase(&self) -> Option<BootPhase> {
        match self {
            Self::Vm(Error::Start { phase, .. }) => Some(*phase),
            _ => None,
        }
    }

    /// What a shell would report: 126 and 127 for a command that cannot be run, 125 for the rest.
    pub fn shell_code(&self) -> i32 {
        match self {
            Self::Agent(error) => error.shell_code(),
            Self::Vm(_) => 125,
        }
    }
}
