//! The host's side of the agent: commands and files of a guest.
//!
//! [`AgentClient`] opens a connection for each operation through a [`Connector`], which is a vsock
//! port of a VM, or anything else that gives byte streams. [`Control`] is the connection that the
//! agent itself makes when the guest has started.
//!
//! What comes from a guest is not trusted: it cannot make this side allocate without bound, block
//! where the caller cannot cancel, or panic. Every future here may be dropped at any time.
//!
//! ```no_run
//! # async fn example(client: capsa_agent_client::AgentClient) -> capsa_agent_client::Result<()> {
//! use capsa_agent_client::Command;
//!
//! let output = client.output(Command::new("uname").argument("-r")).await?;
//! println!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
//! # Ok(())
//! # }
//! ```

mod client;
mod command;
mod connection;
mod connector;
mod control;
mod error;
mod exec;
mod files;
#[cfg(all(unix, any(test, feature = "fuzzing")))]
pub mod fuzzing;
#[cfg(unix)]
mod trees;

pub use client::{AgentClient, MAX_KEPT_BYTES, Output};
pub use command::{Command, CommandInput};
pub use connector::Connector;
pub use control::Control;
pub use error::{AgentError, Result};
pub use exec::{Child, ChildControl, ChildStderr, ChildStdin, ChildStdout};
pub use files::{FileReader, FileWriter, Files, WriteOptions};

pub use capsa_agent_protocol::boot;
pub use capsa_agent_protocol::control::ControlEvent;
pub use capsa_agent_protocol::exec::{ExitStatus, Terminal};
pub use capsa_agent_protocol::files::{Changes, Entry, ExtractOptions, FileKind, Metadata};
pub use capsa_agent_protocol::{
    AGENT_PORT, AgentInfo, ByteString, CONTROL_PORT, Ending, Failure, FailureKind, Timestamp,
    TreeSummary,
};
