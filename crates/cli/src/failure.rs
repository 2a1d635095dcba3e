use std::fmt;
use std::io;

use crate::exit_status::ExitStatus;

/// Why a command failed: one message that names the thing and the fix.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Vm(#[from] capsa::Error),
    #[error(transparent)]
    Sandbox(#[from] capsa::SandboxError),
    #[error(transparent)]
    Store(#[from] capsa_guest::store::StoreError),
    #[error("{context}: {source}")]
    Io {
        context: String,
        #[source]
        source: io::Error,
    },
}

impl Failure {
    pub(crate) fn io(context: impl fmt::Display, source: io::Error) -> Self {
        Self::Io {
            context: context.to_string(),
            source,
        }
    }

    pub(crate) fn status(&self) -> ExitStatus {
        match self {
            // Whoever read the output has seen enough: `capsa doctor | head -1`.
            Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe => {
                ExitStatus::Signal(13)
            }
            Self::Sandbox(error) => match u8::try_from(error.shell_code()) {
                Ok(code @ (126 | 127)) => ExitStatus::Command(code),
                _ => ExitStatus::Failed,
            },
            _ => ExitStatus::Failed,
        }
    }
}
