//! The keeper's side of the control socket.

use std::io;
use std::sync::Arc;

use capsa_core::Error;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::control::{Ended, Facts, Reply, Request};
use super::output_log::OutputReader;
use crate::console::ReadFrom;
use crate::handle::VmHandle;
use crate::keepers::{frames, is_ours};
use crate::network::{Scope, relay};

/// How much of a relayed stream is held in each direction.
const RELAY_BYTES: usize = 64 << 10;

/// What requests are about.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) vm: Arc<VmHandle>,
    pub(super) facts: Facts,
    pub(super) output: Option<OutputReader>,
    /// Set once everything about the end is known and written down.
    pub(super) ended: watch::Receiver<Option<Ended>>,
}

/// Takes connections and carries out what they ask. Dropping it ends those that are left.
#[derive(Debug)]
pub(super) struct Server {
    listener: UnixListener,
    served: Arc<Served>,
    connections: JoinSet<()>,
}

impl Server {
    pub(super) fn new(listener: UnixListener, served: Served) -> Self {
        Self {
            listener,
            served: Arc::new(served),
            connections: JoinSet::new(),
        }
    }

    /// Serves for ever.
    pub(super) async fn serve(&mut self) -> io::Result<()> {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => {
                    let (stream, _) = accepted?;
                    if is_ours(&stream) {
                        let served = self.served.clone();
                        self.connections.spawn(async move {
                            if let Err(error) = served.talk(stream).await {
                                tracing::debug!(%error, "a control connection ended");
                            }
                        });
                    }
                }
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    /// Waits for those that still get their answer.
    pub(super) async fn finish(mut self) {
        while self.connections.join_next().await.is_some() {}
    }
}

impl Served {
    async fn talk(&self, mut stream: UnixStream) -> io::Result<()> {
        let Some(request) = frames::receive(&mut stream).await? else {
            return Ok(());
        };
        match request {
            Request::Connect { port } => self.relay(stream, port).await,
            Request::Output { follow } => self.output(stream, follow).await,
            Request::Console { follow } => self.console(stream, follow).await,
            Request::Network => self.network(stream).await,
            other => {
                let reply = tokio::select! {
                    reply = self.answer(other) => reply,
                    // Nobody waits for the answer any more.
                    _ = closed(&stream) => return Ok(()),
                };
                frames::send(&mut stream, &reply).await
            }
        }
    }

    async fn answer(&self, request: Request) -> Reply {
        let done = |result: Result<(), Error>| match result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Failed(error.into()),
        };
        match request {
            Request::Facts => Reply::Facts(Box::new(self.facts.clone())),
            Request::Status => Reply::Status(self.vm.status().into()),
            Request::Pause => done(self.vm.pause().await),
            Request::Resume => done(self.vm.resume().await),
            Request::Kill => {
                let killed = self.vm.kill().await;
                self.end().await;
                done(killed)
            }
            Request::Stop { grace } => match self.vm.stop(grace).await {
                Ok(report) => {
                    self.end().await;
                    Reply::Stopped {
                        exit: report.exit,
                        killed: report.killed,
                    }
                }
                Err(error) => Reply::Failed(error.into()),
            },
            Request::Wait => match self.end().await {
                Some(ended) => Reply::Ended(ended),
                None => Reply::Failed(Error::Ended(self.vm.wait().await).into()),
            },
            Request::Connect { .. }
            | Request::Output { .. }
            | Request::Console { .. }
            | Request::Network => Reply::Done,
        }
    }

    async fn end(&self) -> Option<Ended> {
        let mut ended = self.ended.clone();
        let ended = ended.wait_for(Option::is_some).await.ok()?;
        ended.clone()
    }

    async fn relay(&self, mut stream: UnixStream, port: u32) -> io::Result<()> {
        let connected = async {
            let vm = self.vm.running("connect to it")?;
            vm.vsock_connect(port).await
        };
        let mut guest = match connected.await {
            Ok(guest) => guest,
            Err(error) => return frames::send(&mut stream, &Reply::Failed(error.into())).await,
        };
        frames::send(&mut stream, &Reply::Done).await?;
        copy_bidirectional_with_sizes(&mut stream, &mut guest, RELAY_BYTES, RELAY_BYTES)
            .await
            .map(drop)
    }

    async fn network(&self, mut stream: UnixStream) -> io::Result<()> {
        let Some(network) = self.vm.network() else {
            let error = Error::InvalidState {
                operation: "steer its network",
                state: "has none".to_owned(),
            };
            return frames::send(&mut stream, &Reply::Failed(error.into())).await;
        };
        frames::send(&mut stream, &Reply::Done).await?;
        tokio::select! {
            relayed = relay(stream, network.network(), Scope::Guests) => relayed,
            _ended = self.end() => Ok(()),
        }
    }

    async fn output(&self, mut stream: UnixStream, follow: bool) -> io::Result<()> {
        frames::send(&mut stream, &Reply::Done).await?;
        if let Some(output) = self.output.clone() {
            output.copy(&mut stream, follow).await?;
        }
        stream.shutdown().await
    }

    async fn console(&self, mut stream: UnixStream, follow: bool) -> io::Result<()> {
        let console = match self.vm.console() {
            Ok(console) => console,
            Err(error) => return frames::send(&mut stream, &Reply::Failed(error.into())).await,
        };
        frames::send(&mut stream, &Reply::Done).await?;
        if follow {
            let mut reader = console.reader(ReadFrom::Start);
            tokio::io::copy(&mut reader, &mut stream).await?;
        } else {
            stream.write_all(&console.tail(usize::MAX)).await?;
        }
        stream.shutdown().await
    }
}

/// Waits until the other side has closed a connection on which it has nothing more to say.
async fn closed(stream: &UnixStream) -> io::Result<()> {
    loop {
        stream.readable().await?;
        match stream.try_read(&mut [0; 64]) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}
