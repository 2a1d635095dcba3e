//! The messages between the host and the agent in the guest.
//!
//! # Connections
//! The agent listens on vsock port [`AGENT_PORT`]. **Every operation has a connection of its own**:
//! each command, each file operation, so that a slow reader slows only its own. At its start the agent
//! also connects to port [`CONTROL_PORT`] of the host (context identifier 2), which tells the host
//! without polling that the guest is there; see [`control`].
//!
//! # What goes over one
//! Each side begins with a *preamble*: [`MAGIC`](preamble::MAGIC) and its version in fixed places,
//! whatever else changes between versions. [Frames](frame) follow: the host's first holds a
//! [`Request`], the agent's first holds a [`Reply`]. What comes then depends on the request:
//!
//! | request | host to agent | agent to host |
//! |---|---|---|
//! | [`Request::Exec`] | standard input, [`ExecControl`](exec::ExecControl) | [`Reply::Started`], output, [`ExecEvent`](exec::ExecEvent) |
//! | [`FileRequest::Read`](files::FileRequest::Read), [`CopyOut`](files::FileRequest::CopyOut) | | [`Reply::Done`], data, an end, [`Reply`] |
//! | [`FileRequest::Write`](files::FileRequest::Write), [`CopyIn`](files::FileRequest::CopyIn) | data, an end | [`Reply::Done`], later [`Reply`] |
//! | [`FileRequest::List`](files::FileRequest::List) | | [`Reply::Entries`] as often as needed, [`Reply::Done`] |
//! | [`Request::Connect`] | bytes without frames | [`Reply::Done`], bytes without frames |
//! | all others | | one [`Reply`] |
//!
//! Messages are postcard-encoded. Decoding accepts any bytes: it fails, and never panics or allocates
//! more than a small multiple of what came.

pub mod boot;
mod bytes;
pub mod control;
pub mod exec;
mod failure;
pub mod files;
pub mod frame;
#[cfg(all(unix, any(test, feature = "fuzzing")))]
pub mod fuzzing;
pub mod preamble;
mod request;
#[cfg(unix)]
pub mod tree;
mod tree_summary;

pub use bytes::ByteString;
pub use failure::{Failure, FailureKind};
pub use request::{AgentInfo, Ending, Reply, Request, Timestamp};
pub use tree_summary::TreeSummary;

/// The version of these messages; both sides must have the same.
pub const VERSION: u32 = 1;
/// The vsock port on which the agent listens in the guest.
pub const AGENT_PORT: u32 = 52_100;
/// The vsock port of the host to which the agent connects at its start.
pub const CONTROL_PORT: u32 = 52_101;

/// Why what came over a connection cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// It does not begin as these connections do.
    #[error("the other side is not a capsa agent, or not a host that knows it")]
    Magic,
    /// The other side has another version.
    #[error(
        "this side speaks version {VERSION} of the agent protocol and the other version {theirs}: \
         use the agent and the library of the same version of capsa"
    )]
    Version {
        /// The other side's.
        theirs: u32,
    },
    /// A message cannot be read.
    #[error("a message of the agent protocol cannot be read")]
    Malformed,
    /// A frame of an unknown kind.
    #[error("a frame of the agent protocol has the unknown kind {0}")]
    UnknownKind(u8),
    /// A frame is longer than its kind may be, in bytes.
    #[error("a frame of {0} bytes is too long for the agent protocol")]
    TooLong(u64),
    /// Something came that does not belong there.
    #[error("the agent protocol does not allow {0}")]
    Unexpected(&'static str),
}

impl From<ProtocolError> for std::io::Error {
    fn from(error: ProtocolError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}
