//! The process that looks after one kept network, and runs it.

use std::error::Error as StdError;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use capsa_core::{Error, Result};
use capsa_net::NetworkConfig;
use capsa_network::Place;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;

use super::control::{Facts, Reply, Request, Start};
use super::record::{Claim, NetworkInfo, NetworkState, Registry};
use crate::keepers::{self, Birth, frames, is_ours};
use crate::network::events::NetworkEvent;
use crate::network::relay::{Scope, relay};
use crate::network::shared::{Network, OnLoss};

// UNSAFETY: the macro names the section in which the C library finds functions to call ahead of
// `main`; see there.
#[allow(unsafe_code, reason = "the role's hook ahead of main")]
mod role {
    capsa_process::role! {
        /// Looks after a kept network.
        pub(crate) static KEEPER: "network-keeper", begins super::BEGINNING, runs super::keep;
    }
}
pub(super) use role::KEEPER;

/// The first message, with the conversation's stream beside it.
pub(super) const BEGINNING: &[u8] = b"capsa-network-keeper\0";

fn keep(socket: OwnedFd) -> std::result::Result<(), Box<dyn StdError>> {
    let stream = keepers::received(socket)?;
    capsa_network::allow_many_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Whoever asked for the end sees it close with the process.
    let _asked = runtime.block_on(async {
        let mut conversation = UnixStream::from_std(stream)?;
        let Some(start) = frames::receive::<Start>(&mut conversation).await? else {
            return Ok(None);
        };
        match run(&mut conversation, start.config).await {
            Ok(asked) => Ok(asked),
            Err(error) => {
                let failed = Birth::<()>::Failed(error.into());
                frames::send(&mut conversation, &failed)
                    .await
                    .map(|()| None)
            }
        }
    })?;
    Ok(())
}

/// From the start to the end, to the connection over which that was asked for. An error is for the
/// creator, who still waits then.
async fn run(conversation: &mut UnixStream, config: NetworkConfig) -> Result<Option<UnixStream>> {
    let mut claim = Registry::open()?.claim(NetworkInfo::new(&config))?;
    let begun = begin(config, claim.socket()).await.and_then(|begun| {
        claim.update(|record| record.state = NetworkState::Running)?;
        Ok(begun)
    });
    let (network, listener) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            claim.remove();
            return Err(error);
        }
    };
    if frames::send(conversation, &Birth::Alive(())).await.is_err() {
        // Nobody knows of it.
        claim.remove();
        return Ok(None);
    }
    Ok(live(network, listener, claim).await)
}

async fn begin(config: NetworkConfig, socket: PathBuf) -> Result<(Network, UnixListener)> {
    let network = Network::start_in(Place::CallersProcess, config, OnLoss::StayDown).await?;
    let listener = UnixListener::bind(&socket)
        .map_err(|error| Error::io(format!("cannot make {}", socket.display()), error))?;
    Ok((network, listener))
}

/// Why it ends.
enum End {
    /// It was asked to, by whoever is at the other end.
    Asked(UnixStream),
    /// By a signal.
    Terminated,
    /// The network itself did: what is left of it says that it crashed.
    Lost,
}

async fn live(network: Network, listener: UnixListener, claim: Claim) -> Option<UnixStream> {
    let (ends, mut asked) = mpsc::channel(1);
    let server = Arc::new(Server { network, ends });
    let mut events = server.network.events();
    let mut terminate = signal(SignalKind::terminate()).ok();
    // The terminal on which it was started may go.
    let _hang_up = signal(SignalKind::hangup());
    let mut connections = JoinSet::new();
    let mut accepting = true;
    let end = loop {
        tokio::select! {
            accepted = listener.accept(), if accepting => match accepted {
                Ok((stream, _)) if is_ours(&stream) => {
                    let server = server.clone();
                    connections.spawn(async move {
                        if let Err(error) = server.talk(stream).await {
                            tracing::debug!(%error, "a connection to a network ended");
                        }
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    // Out of descriptors: until one of those that are there goes.
                    tracing::warn!(%error, "a connection to a network was not taken");
                    accepting = false;
                    if connections.is_empty() {
                        break End::Lost;
                    }
                }
            },
            Some(_) = connections.join_next() => accepting = true,
            Some(stream) = asked.recv() => break End::Asked(stream),
            () = terminated(&mut terminate) => break End::Terminated,
            event = events.next() => {
                if matches!(event, Some(NetworkEvent::Lost { .. }) | None) {
                    break End::Lost;
                }
            }
        }
    };
    drop(connections);
    server.network.shutdown().await;
    match end {
        End::Asked(mut stream) => {
            claim.remove();
            // Whoever asked may be gone.
            let _unheard = frames::send(&mut stream, &Reply::Ended).await;
            return Some(stream);
        }
        End::Terminated => claim.remove(),
        End::Lost => {}
    }
    None
}

async fn terminated(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

struct Server {
    network: Network,
    /// Takes the connections over which the end was asked for.
    ends: mpsc::Sender<UnixStream>,
}

impl Server {
    async fn talk(&self, mut stream: UnixStream) -> io::Result<()> {
        match frames::receive(&mut stream).await? {
            None => Ok(()),
            Some(Request::Join) => {
                let facts = Facts {
                    config: self.network.config().clone(),
                };
                frames::send(&mut stream, &Reply::Joined(Box::new(facts))).await?;
                relay(stream, &self.network, Scope::Whole).await
            }
            Some(Request::End { force }) => {
                let guests = match self.network.guests().await {
                    Ok(guests) => guests,
                    Err(error) => {
                        return frames::send(&mut stream, &Reply::Failed(error.into())).await;
                    }
                };
                if guests.is_empty() || force {
                    // Where it is ending already, this connection ends with it.
                    let _ending = self.ends.send(stream).await;
                    return Ok(());
                }
                let names = guests.iter().map(|info| info.counters.guest.to_string());
                frames::send(&mut stream, &Reply::HasGuests(names.collect())).await
            }
        }
    }
}
