use std::sync::Arc;

use capsa_agent_protocol::boot::{BootConfig, BootReport};
use capsa_agent_protocol::{
    AgentInfo, Ending, FailureKind, ProtocolError, Reply, Request, Timestamp,
};
use capsa_core::ByteStream;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::connection::Connection;
use crate::exec::{self, Child};
use crate::{AgentError, Command, Connector, ExitStatus, Files, Result};

/// What a guest sends is read into memory up to this length in bytes: 256 MiB.
pub const MAX_KEPT_BYTES: usize = 256 << 20;

/// Asks one guest's agent. Clones are cheap, and ask the same one.
#[derive(Clone)]
pub struct AgentClient {
    connector: Arc<dyn Connector>,
}

/// What a command gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl AgentClient {
    /// A client that opens its connections with `connector`.
    pub fn new(connector: impl Connector) -> Self {
        Self {
            connector: Arc::new(connector),
        }
    }

    /// Starts a command. On return it runs, or could not be started.
    ///
    /// # Errors
    /// [`AgentError::CommandNotFound`], [`AgentError::NotExecutable`],
    /// [`AgentError::ArgumentsTooLong`], and [`AgentError::Refused`] for a user or directory that
    /// the guest has not.
    pub async fn spawn(&self, command: Command) -> Result<Child> {
        let program = command.program();
        let bytes = command.length();
        let request = Request::Exec(Box::new(command.request.clone()));
        let too_long = || AgentError::ArgumentsTooLong {
            program: program.clone(),
            bytes,
        };
        let mut connection = match self.open(&request, "starting a command").await {
            Err(AgentError::Protocol(ProtocolError::TooLong(_))) => return Err(too_long()),
            other => other?,
        };
        match connection.reply().await? {
            Reply::Started { pid } => Ok(exec::start(connection, &command.request, pid)),
            Reply::Failed(failure) => Err(match failure.kind {
                FailureKind::CommandNotFound => AgentError::CommandNotFound { program },
                FailureKind::NotExecutable => AgentError::NotExecutable {
                    program,
                    reason: failure.to_string(),
                },
                FailureKind::ArgumentsTooLong => too_long(),
                _ => AgentError::refused(program, failure),
            }),
            _ => Err(unexpected()),
        }
    }

    /// Runs a command to its end, and gives all that it wrote, at most [`MAX_KEPT_BYTES`] of each
    /// stream.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), and [`AgentError::TooLong`].
    pub async fn output(&self, command: Command) -> Result<Output> {
        let mut child = self.spawn(command).await?;
        drop(child.stdin.take());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let collect_stdout = collect(stdout, "standard output of a command");
        let collect_stderr = collect(stderr, "standard error of a command");
        let (status, stdout, stderr) =
            tokio::try_join!(child.wait(), collect_stdout, collect_stderr)?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// The guest's files.
    pub fn files(&self) -> Files {
        Files::new(self.clone())
    }

    /// Asks what the agent is; that it answers says that the guest is alive.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn info(&self) -> Result<AgentInfo> {
        match self.ask(&Request::Info, "asking what the agent is").await? {
            Reply::Info(info) => Ok(info),
            _ => Err(unexpected()),
        }
    }

    /// Sets the guest up, where that is not done over the [`Control`](crate::Control) connection.
    ///
    /// # Errors
    /// As [`Control::boot`](crate::Control::boot).
    pub async fn boot(&self, config: BootConfig) -> Result<BootReport> {
        let request = Request::Boot(Box::new(config));
        match self.ask(&request, "setting up the guest").await? {
            Reply::Booted(report) => Ok(report),
            _ => Err(unexpected()),
        }
    }

    /// Sets the guest's clock to the host's.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_clock(&self) -> Result<()> {
        let request = Request::SetClock(Timestamp::now());
        self.ask_done(&request, "setting the guest's clock").await
    }

    /// Asks the guest to end. It is answered before that happens.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn end(&self, ending: Ending) -> Result<()> {
        self.ask_done(&Request::End(ending), "ending the guest")
            .await
    }

    /// Whether a program in the guest listens on TCP `port` of its loopback interface now.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn probe_port(&self, port: u16) -> Result<bool> {
        let request = Request::Probe { port };
        match self.ask(&request, "probing a port of the guest").await? {
            Reply::Probed(listens) => Ok(listens),
            _ => Err(unexpected()),
        }
    }

    /// Connects to TCP `port` of the guest's loopback interface, without a network device.
    ///
    /// # Errors
    /// [`AgentError::Refused`] where nobody listens.
    pub async fn connect_port(&self, port: u16) -> Result<Box<dyn ByteStream>> {
        const DOING: &str = "connecting to a port of the guest";
        let mut connection = self.open(&Request::Connect { port }, DOING).await?;
        match connection.reply().await? {
            Reply::Done => {
                let rest = connection.reader.into_rest();
                let (read, write) = tokio::io::split(connection.stream);
                let read = std::io::Cursor::new(rest).chain(read);
                Ok(Box::new(tokio::io::join(read, write)))
            }
            Reply::Failed(failure) => Err(AgentError::refused(DOING, failure)),
            _ => Err(unexpected()),
        }
    }

    pub(crate) async fn open(&self, request: &Request, doing: &'static str) -> Result<Connection> {
        Connection::open(self.connector.as_ref(), request, doing).await
    }

    /// Asks for something with one answer.
    pub(crate) async fn ask(&self, request: &Request, doing: &'static str) -> Result<Reply> {
        match self.open(request, doing).await?.reply().await? {
            Reply::Failed(failure) => Err(AgentError::refused(doing, failure)),
            reply => Ok(reply),
        }
    }

    pub(crate) async fn ask_done(&self, request: &Request, doing: &'static str) -> Result<()> {
        match self.ask(request, doing).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

pub(crate) fn unexpected() -> AgentError {
    ProtocolError::Unexpected("this answer to this request").into()
}

/// Reads a stream to its end, into memory.
pub(crate) async fn collect(
    stream: Option<impl AsyncRead + Unpin>,
    what: &'static str,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        let limit = MAX_KEPT_BYTES;
        stream
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| AgentError::connection("reading what a guest sends", error))?;
        if bytes.len() > limit {
            let what = what.to_owned();
            return Err(AgentError::TooLong { what, limit });
        }
    }
    Ok(bytes)
}
