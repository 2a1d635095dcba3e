//! A command that runs in the guest.

mod driver;
mod state;
mod streams;

use std::fmt;
use std::sync::Arc;

use capsa_agent_protocol::ProtocolError;
use capsa_agent_protocol::exec::{ExecControl, ExecRequest, ExitStatus, OutputStream, Terminal};

pub use streams::{ChildStderr, ChildStdin, ChildStdout};

use crate::connection::Connection;
use crate::{AgentError, Result};
use state::{Broken, Shared};

/// A command that was started. Dropping it ends the command and all of its process group, unless it
/// is [detached](crate::Command::detached).
///
/// Standard output and error are to be read: what a command writes waits in the guest for its
/// reader, once [256 KiB](capsa_agent_protocol::exec::WINDOW_BYTES) are on the way.
pub struct Child {
    /// What the command reads, if it was [piped](crate::CommandInput::Piped) or has a terminal.
    /// Dropping it, or shutting it down, is the end of the command's input.
    pub stdin: Option<ChildStdin>,
    /// What the command writes to standard output, or to its terminal.
    pub stdout: Option<ChildStdout>,
    /// What the command writes to standard error; empty for a command with a terminal.
    pub stderr: Option<ChildStderr>,
    control: ChildControl,
    pid: u32,
}

/// Sends signals to a command. Clones are cheap, and keep nothing running.
#[derive(Clone)]
pub struct ChildControl {
    shared: Arc<Shared>,
}

/// Takes over a connection on which a command was just started.
pub(crate) fn start(connection: Connection, request: &ExecRequest, pid: u32) -> Child {
    let shared = Arc::new(Shared::new());
    // It ends with the command, or when nobody wants to know more.
    tokio::spawn(driver::run(connection, Arc::clone(&shared)));
    let stdin = ChildStdin::new(Arc::clone(&shared));
    Child {
        // Dropped where the command reads nothing.
        stdin: request.stdin.then_some(stdin),
        stdout: Some(ChildStdout::new(Arc::clone(&shared))),
        stderr: Some(ChildStderr::new(Arc::clone(&shared))),
        control: ChildControl { shared },
        pid,
    }
}

impl Child {
    /// Its process in the guest.
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// Waits for the command itself to end, however long that takes, and whether or not its output
    /// is read. The future may be dropped, and it may be called again.
    ///
    /// # Errors
    /// [`AgentError::Gone`] where the agent or the guest ended first.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let mut ended = self.control.shared.ended();
        let state = ended
            .wait_for(Option::is_some)
            .await
            .map_err(|_| AgentError::Gone { doing: DOING })?;
        match state.as_ref() {
            Some(Ok(status)) => Ok(*status),
            Some(Err(broken)) => Err(broken.to_error()),
            None => Err(AgentError::Gone { doing: DOING }),
        }
    }

    /// Sends a signal, by its number on Linux, to the command's process group. It is not an error if
    /// the command has ended.
    pub fn signal(&self, number: i32) {
        self.control.signal(number);
    }

    /// Sends SIGKILL to the command's process group.
    pub fn kill(&self) {
        self.signal(SIGKILL);
    }

    /// Tells the command's terminal its new size.
    pub fn resize(&self, size: Terminal) {
        self.control.resize(size);
    }

    /// Signals and sizes, for another task.
    pub fn control(&self) -> ChildControl {
        self.control.clone()
    }
}

impl ChildControl {
    /// As [`Child::signal`].
    pub fn signal(&self, number: i32) {
        self.shared.send(ExecControl::Signal(number));
    }

    /// As [`Child::resize`].
    pub fn resize(&self, size: Terminal) {
        self.shared.send(ExecControl::Resize(size));
    }
}

const DOING: &str = "a command ran";
/// Its number on every Linux.
const SIGKILL: i32 = 9;

impl Drop for Child {
    fn drop(&mut self) {
        // The agent ends the command when the connection goes.
        self.control.shared.drop_child();
    }
}

impl fmt::Debug for Child {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ChildControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildControl").finish_non_exhaustive()
    }
}

impl Broken {
    fn to_error(&self) -> AgentError {
        match self {
            Self::Gone => AgentError::Gone { doing: DOING },
            Self::Protocol(error) => error.clone().into(),
            Self::Io(kind, text) => AgentError::Connection {
                doing: DOING,
                source: std::io::Error::new(*kind, text.clone()),
            },
        }
    }
}

impl From<AgentError> for Broken {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Protocol(error) => Self::Protocol(error),
            AgentError::Connection { source, .. } => Self::Io(source.kind(), source.to_string()),
            _ => Self::Gone,
        }
    }
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

const fn index(stream: OutputStream) -> usize {
    match stream {
        OutputStream::Stdout => 0,
        OutputStream::Stderr => 1,
    }
}
