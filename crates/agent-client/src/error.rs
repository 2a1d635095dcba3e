use std::io;
use std::path::PathBuf;

use capsa_agent_protocol::{Failure, FailureKind, ProtocolError};

/// The result of this crate's operations.
pub type Result<T, E = AgentError> = std::result::Result<T, E>;

/// What can go wrong between the host and a guest's agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// There is no connection to the agent.
    #[error(
        "cannot connect to the agent in the guest: {0}; see on the guest's console whether it still runs"
    )]
    Connect(#[source] io::Error),
    /// A connection to the agent broke.
    #[error("the connection to the agent broke while {doing}: {source}")]
    Connection {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent closed a connection before it had answered: it, or its guest, has ended.
    #[error(
        "the agent in the guest went away while {doing}; see on the guest's console whether it was killed"
    )]
    Gone {
        /// What was being done.
        doing: &'static str,
    },
    /// The agent is of another version, or sends what makes no sense.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// There is no such program in the guest.
    #[error("{program}: not found in the guest")]
    CommandNotFound {
        /// The program.
        program: String,
    },
    /// The program is there and cannot be executed.
    #[error("{program}: cannot be executed in the guest: {reason}")]
    NotExecutable {
        /// The program.
        program: String,
        /// Why.
        reason: String,
    },
    /// The command's arguments and environment are too long.
    #[error(
        "{program}: its arguments and environment are too long ({bytes} bytes); pass long data on standard input or in a file"
    )]
    ArgumentsTooLong {
        /// The program.
        program: String,
        /// Their length in bytes.
        bytes: usize,
    },
    /// Something else that the guest refused.
    #[error("{operation}: {failure}")]
    Refused {
        /// What was asked for.
        operation: String,
        /// The guest's answer.
        failure: Failure,
    },
    /// More came than is kept in memory.
    #[error("{what} is longer than {limit} bytes; read it as a stream")]
    TooLong {
        /// What it was.
        what: String,
        /// How many bytes are kept at most.
        limit: usize,
    },
    /// A file of the host cannot be used.
    #[error("{}: {source}", path.display())]
    Local {
        /// The file, or the tree it is in.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl AgentError {
    pub(crate) fn connection(doing: &'static str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Gone { doing },
            _ => Self::Connection { doing, source },
        }
    }

    pub(crate) fn refused(operation: impl Into<String>, failure: Failure) -> Self {
        Self::Refused {
            operation: operation.into(),
            failure,
        }
    }

    /// The guest's error number, where it was the guest's operating system that refused.
    pub fn guest_errno(&self) -> Option<i32> {
        match self {
            Self::Refused { failure, .. } if failure.errno != 0 => Some(failure.errno),
            _ => None,
        }
    }

    /// Whether a file of the guest is not there.
    pub fn is_not_found(&self) -> bool {
        // ENOENT and ENOTDIR, which have these numbers on every Linux.
        matches!(self.guest_errno(), Some(2 | 20))
    }

    /// The kind of failure, where the guest answered with one.
    pub fn failure_kind(&self) -> Option<FailureKind> {
        match self {
            Self::CommandNotFound { .. } => Some(FailureKind::CommandNotFound),
            Self::NotExecutable { .. } => Some(FailureKind::NotExecutable),
            Self::ArgumentsTooLong { .. } => Some(FailureKind::ArgumentsTooLong),
            Self::Refused { failure, .. } => Some(failure.kind),
            _ => None,
        }
    }

    /// What a shell would report: 126 and 127 for a command that cannot be run, 125 for the rest.
    pub fn shell_code(&self) -> i32 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::NotExecutable { .. } | Self::ArgumentsTooLong { .. } => 126,
            _ => 125,
        }
    }
}
