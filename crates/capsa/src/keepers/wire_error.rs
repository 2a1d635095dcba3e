//! Errors that cross a socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use capsa_core::{BackendKind, BootPhase, Error, NetworkErrorKind, VmExit};
use serde::{Deserialize, Serialize};

/// An [`Error`] as it is sent: the ones that callers tell apart stay what they are, the others keep
/// their message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum WireError {
    InvalidSetting {
        setting: String,
        value: String,
        reason: String,
        fix: String,
    },
    Unsupported {
        setting: String,
        backend: BackendKind,
        fix: String,
    },
    Unavailable {
        backend: BackendKind,
        reason: String,
        fix: String,
    },
    File {
        setting: String,
        path: PathBuf,
        reason: String,
        fix: String,
    },
    Start {
        phase: Phase,
        reason: String,
        fix: String,
        console: String,
    },
    Ended(VmExit),
    Network {
        network: String,
        kind: NetworkKind,
        reason: String,
    },
    Timeout {
        operation: String,
        limit: Duration,
        console: String,
    },
    Other(String),
}

/// A [`NetworkErrorKind`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum NetworkKind {
    PortInUse,
    NotPermitted,
    Setting,
    NotFound,
    HasGuests,
    Ended,
    System,
}

impl From<NetworkErrorKind> for NetworkKind {
    fn from(kind: NetworkErrorKind) -> Self {
        match kind {
            NetworkErrorKind::PortInUse => Self::PortInUse,
            NetworkErrorKind::NotPermitted => Self::NotPermitted,
            NetworkErrorKind::Setting => Self::Setting,
            NetworkErrorKind::NotFound => Self::NotFound,
            NetworkErrorKind::HasGuests => Self::HasGuests,
            NetworkErrorKind::Ended => Self::Ended,
            _ => Self::System,
        }
    }
}

impl From<NetworkKind> for NetworkErrorKind {
    fn from(kind: NetworkKind) -> Self {
        match kind {
            NetworkKind::PortInUse => Self::PortInUse,
            NetworkKind::NotPermitted => Self::NotPermitted,
            NetworkKind::Setting => Self::Setting,
            NetworkKind::NotFound => Self::NotFound,
            NetworkKind::HasGuests => Self::HasGuests,
            NetworkKind::Ended => Self::Ended,
            NetworkKind::System => Self::System,
        }
    }
}

/// A [`BootPhase`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Phase {
    Check,
    Monitor,
    Load,
    Kernel,
    Agent,
}

impl From<BootPhase> for Phase {
    fn from(phase: BootPhase) -> Self {
        match phase {
            BootPhase::Check => Self::Check,
            BootPhase::Monitor => Self::Monitor,
            BootPhase::Load => Self::Load,
            BootPhase::Kernel => Self::Kernel,
            _ => Self::Agent,
        }
    }
}

impl From<Phase> for BootPhase {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Check => Self::Check,
            Phase::Monitor => Self::Monitor,
            Phase::Load => Self::Load,
            Phase::Kernel => Self::Kernel,
            Phase::Agent => Self::Agent,
        }
    }
}

impl From<Error> for WireError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidSetting {
                setting,
                value,
                reason,
                fix,
            } => Self::InvalidSetting {
                setting,
                value,
                reason,
                fix,
            },
            Error::Unsupported {
                setting,
                backend,
                fix,
            } => Self::Unsupported {
                setting,
                backend,
                fix,
            },
            Error::BackendUnavailable {
                backend,
                reason,
                fix,
            } => Self::Unavailable {
                backend,
                reason,
                fix,
            },
            Error::File {
                setting,
                path,
                reason,
                fix,
            } => Self::File {
                setting,
                path,
                reason,
                fix,
            },
            Error::Start {
                phase,
                reason,
                fix,
                console,
            } => Self::Start {
                phase: phase.into(),
                reason,
                fix,
                console,
            },
            Error::Ended(exit) => Self::Ended(exit),
            Error::Network {
                network,
                kind,
                reason,
            } => Self::Network {
                network,
                kind: kind.into(),
                reason,
            },
            Error::Timeout {
                operation,
                limit,
                console,
            } => Self::Timeout {
                operation,
                limit,
                console,
            },
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        match error {
            WireError::InvalidSetting {
                setting,
                value,
                reason,
                fix,
            } => Self::InvalidSetting {
                setting,
                value,
                reason,
                fix,
            },
            WireError::Unsupported {
                setting,
                backend,
                fix,
            } => Self::Unsupported {
                setting,
                backend,
                fix,
            },
            WireError::Unavailable {
                backend,
                reason,
                fix,
            } => Self::BackendUnavailable {
                backend,
                reason,
                fix,
            },
            WireError::File {
                setting,
                path,
                reason,
                fix,
            } => Self::File {
                setting,
                path,
                reason,
                fix,
            },
            WireError::Start {
                phase,
                reason,
                fix,
                console,
            } => Self::Start {
                phase: phase.into(),
                reason,
                fix,
                console,
            },
            WireError::Ended(exit) => Self::Ended(exit),
            WireError::Network {
                network,
                kind,
                reason,
            } => Self::Network {
                network,
                kind: kind.into(),
                reason,
            },
            WireError::Timeout {
                operation,
                limit,
                console,
            } => Self::Timeout {
                operation,
                limit,
                console,
            },
            WireError::Other(text) => {
                Self::io("in the process that looks after it", io::Error::other(text))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn across(error: Error) -> Error {
        let text = serde_json::to_string(&WireError::from(error)).unwrap();
        serde_json::from_str::<WireError>(&text).unwrap().into()
    }

    #[test]
    fn failed_start_stays_one_with_phase_and_console() {
        let sent = Error::Start {
            phase: BootPhase::Kernel,
            reason: "no root".into(),
            fix: "give one".into(),
            console: "VFS: panic".into(),
        };
        let text = sent.to_string();

        let received = across(sent);

        assert_eq!(received.to_string(), text);
        assert!(matches!(
            received,
            Error::Start {
                phase: BootPhase::Kernel,
                ..
            }
        ));
    }

    #[test]
    fn errors_without_a_kind_of_their_own_keep_their_message() {
        let received = across(Error::Console {
            reason: "it is shut".into(),
        });

        assert!(received.to_string().contains("it is shut"), "{received}");
    }
}
