//! Following a network's process, and starting it again.

use std::sync::{Arc, Weak};

use capsa_net::Event;
use capsa_network::{NetworkEnd, NetworkProcess, Place, StartError};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::events::NetworkEvent;
use super::shared::{Access, Inner, OnLoss};

/// How often in a row a network is started again that ends before a guest is back.
const ATTEMPTS: u32 = 3;

/// Passes events on, up to the end of a process and, where that is wanted, of those that follow it.
pub(super) async fn supervise(
    network: Weak<Inner>,
    end: impl Future<Output = NetworkEnd> + Send,
    mut events: broadcast::Receiver<Event>,
) {
    let mut end: std::pin::Pin<Box<dyn Future<Output = NetworkEnd> + Send + '_>> = Box::pin(end);
    loop {
        let ended = tokio::select! {
            biased;
            event = events.recv() => match event {
                Ok(event) => {
                    tell(&network, event.into());
                    continue;
                }
                Err(RecvError::Lagged(count)) => {
                    tell(&network, NetworkEvent::Missed(count));
                    continue;
                }
                Err(RecvError::Closed) => end.as_mut().await,
            },
            ended = end.as_mut() => ended,
        };
        let Some(inner) = network.upgrade() else {
            return;
        };
        let lost = inner.state().process.take();
        if lost.is_none() {
            // It was to end.
            return;
        }
        drop(lost);
        let mut reason = ended.reason;
        let words = ended.last_words.trim();
        if !words.is_empty() {
            reason = format!("{reason}: {words}");
        }
        tracing::warn!(network = inner.config.name, reason, "a network was lost");
        let _ = inner.events.send(NetworkEvent::Lost { reason });
        if inner.on_loss == OnLoss::StayDown {
            take_links_down(&inner);
            return;
        }
        match restart(&inner).await {
            Ok(process) => {
                events = process.client().events();
                end = Box::pin(process.watch_end());
                inner.state().process = Some(Access::Own(process));
                let _ = inner.events.send(NetworkEvent::Restored);
            }
            Err(error) => {
                let reason = format!("it cannot be started again: {error}");
                let _ = inner.events.send(NetworkEvent::Lost { reason });
                take_links_down(&inner);
                return;
            }
        }
    }
}

fn tell(network: &Weak<Inner>, event: NetworkEvent) {
    if let Some(network) = network.upgrade() {
        // Nobody may be listening.
        let _ = network.events.send(event);
    }
}

/// Lets go of the sockets, by which the guests' sides notice.
fn take_links_down(network: &Arc<Inner>) {
    for member in network.state().guests.values_mut() {
        member.frames = None;
    }
}

async fn restart(network: &Arc<Inner>) -> Result<NetworkProcess, StartError> {
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match try_restart(network).await {
            Ok(process) => return Ok(process),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| std::io::Error::other("it was not tried").into()))
}

async fn try_restart(network: &Arc<Inner>) -> Result<NetworkProcess, StartError> {
    let process = NetworkProcess::start(&network.config, Place::default()).await?;
    let client = process.client();
    let other = |error| StartError::Io(std::io::Error::other(error));
    if network.state().policy_events {
        client.subscribe_policy(true).await.map_err(other)?;
    }
    for (mut guest, frames) in network.members() {
        let name = guest.name.clone();
        if client.reserve_guest(guest.clone()).await.is_err() {
            // A port that another program has taken meanwhile must not cost the others theirs.
            guest.forwards.clear();
            client.reserve_guest(guest).await.map_err(other)?;
        }
        if let Some((format, socket)) = frames {
            client
                .connect_guest(name, format, socket)
                .await
                .map_err(other)?;
        }
    }
    Ok(process)
}
