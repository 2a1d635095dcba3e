//! Talking to a sandbox's keeper.

use std::path::PathBuf;
use std::time::Duration;

use capsa_core::{ByteStream, Error, MonitorFailure, Result, VmExit, VmStatus};
use tokio::net::UnixStream;

use super::control::{Ended, Facts, Reply, Request};
use super::record::{Registry, SandboxState};
use crate::handle::StopReport;
use crate::keepers::frames;

/// Knows where a keeper is; each request has a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct KeeperClient {
    name: String,
    socket: PathBuf,
}

impl KeeperClient {
    pub(crate) fn new(name: String, socket: PathBuf) -> Self {
        Self { name, socket }
    }

    pub(crate) async fn facts(&self) -> Result<Facts> {
        match self.ask(Request::Facts).await?.1 {
            Reply::Facts(facts) => Ok(*facts),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) async fn status(&self) -> Result<VmStatus> {
        match self.ask(Request::Status).await?.1 {
            Reply::Status(status) => Ok(status.into()),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) async fn connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        let (stream, reply) = self.ask(Request::Connect { port }).await?;
        match reply {
            Reply::Done => Ok(Box::new(stream)),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) async fn output(&self, follow: bool) -> Result<UnixStream> {
        self.stream(Request::Output { follow }).await
    }

    pub(crate) async fn console(&self, follow: bool) -> Result<UnixStream> {
        self.stream(Request::Console { follow }).await
    }

    /// A connection on which the sandbox's network is steered.
    pub(crate) async fn network(&self) -> Result<UnixStream> {
        self.stream(Request::Network).await
    }

    async fn stream(&self, request: Request) -> Result<UnixStream> {
        match self.ask(request).await? {
            (stream, Reply::Done) => Ok(stream),
            (_, other) => Err(self.unexpected(&other)),
        }
    }

    pub(crate) async fn stop(&self, grace: Duration) -> Result<StopReport> {
        match self.ask(Request::Stop { grace }).await?.1 {
            Reply::Stopped { exit, killed } => Ok(StopReport { exit, killed }),
            other => Err(self.unexpected(&other)),
        }
    }

    pub(crate) async fn kill(&self) -> Result<()> {
        self.done(Request::Kill).await
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        self.done(Request::Pause).await
    }

    pub(crate) async fn resume(&self) -> Result<()> {
        self.done(Request::Resume).await
    }

    async fn done(&self, request: Request) -> Result<()> {
        match self.ask(request).await?.1 {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Waits for the end. What a keeper that is gone has written down is what counts; one that is gone
    /// without a word has failed.
    pub(crate) async fn wait(&self) -> Result<Ended> {
        match self.ask(Request::Wait).await {
            Ok((_, Reply::Ended(ended))) => Ok(ended),
            Ok((_, other)) => Err(self.unexpected(&other)),
            Err(Error::Ended(exit)) => Ok(self.written_end().await.unwrap_or(Ended {
                exit,
                command: None,
            })),
            Err(error) => Err(error),
        }
    }

    /// What the keeper wrote down of the end, once it is gone.
    async fn written_end(&self) -> Option<Ended> {
        let name = self.name.clone();
        let read = tokio::task::spawn_blocking(move || {
            let registry = Registry::open()?;
            registry.wait_for_owner(&name)?;
            registry.get(&name)
        });
        match read.await.ok()?.ok()?.state {
            SandboxState::Ended { exit, command, .. } => Some(Ended { exit, command }),
            _ => None,
        }
    }

    async fn ask(&self, request: Request) -> Result<(UnixStream, Reply)> {
        let mut stream =
            UnixStream::connect(&self.socket)
                .await
                .map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
                        self.gone()
                    }
                    _ => Error::io(format!("cannot talk to the sandbox {}", self.name), error),
                })?;
        let talk = async {
            frames::send(&mut stream, &request).await?;
            frames::receive(&mut stream).await
        };
        match talk.await {
            Ok(Some(Reply::Failed(error))) => Err(error.into()),
            Ok(Some(reply)) => Ok((stream, reply)),
            Ok(None) => Err(self.gone()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Err(self.gone()),
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(self.gone()),
            Err(error) => Err(Error::io(
                format!("cannot talk to the sandbox {}", self.name),
                error,
            )),
        }
    }

    fn gone(&self) -> Error {
        Error::Ended(VmExit::MonitorFailure(MonitorFailure {
            reason: format!("the process that looks after {} is gone", self.name),
            last_words: String::new(),
        }))
    }

    fn unexpected(&self, reply: &Reply) -> Error {
        Error::io(
            format!("cannot talk to the sandbox {}", self.name),
            std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("it is of another version of capsa: {reply:?}"),
            ),
        )
    }
}
