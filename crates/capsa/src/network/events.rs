//! What networks tell without being asked.

use std::pin::Pin;
use std::task::{Context, Poll};

use capsa_net::{Event, GuestName, Notice, PolicyEvent};
use futures_core::Stream;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError;

/// Something that happened to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NetworkEvent {
    /// A guest's policy decided about a flow or a lookup.
    Policy(PolicyEvent),
    /// Something that the user should know.
    Notice(Notice),
    /// The process that runs a guest has let go of its interface.
    LinkClosed(GuestName),
    /// The network's process is gone. Its VMs live on, without it.
    Lost {
        /// What became of the process, with the last thing that it wrote.
        reason: String,
    },
    /// The network is back after it was lost, with its guests and their forwards. Connections of
    /// before are broken.
    Restored,
    /// This many events were not told, because they came faster than they were read.
    Missed(u64),
}

impl From<Event> for NetworkEvent {
    fn from(event: Event) -> Self {
        match event {
            Event::Policy(event) => Self::Policy(event),
            Event::LinkClosed(guest) => Self::LinkClosed(guest),
            Event::Notice(notice) => Self::Notice(notice),
            Event::Lost(count) => Self::Missed(count),
            _ => Self::Missed(1),
        }
    }
}

/// The events of a network from now on, up to its end.
#[derive(Debug)]
pub struct NetworkEvents(BroadcastStream<NetworkEvent>);

impl NetworkEvents {
    pub(crate) fn new(receiver: broadcast::Receiver<NetworkEvent>) -> Self {
        Self(BroadcastStream::new(receiver))
    }
}

impl Stream for NetworkEvents {
    type Item = NetworkEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<NetworkEvent>> {
        Pin::new(&mut self.0).poll_next(cx).map(|next| {
            next.map(|event| match event {
                Ok(event) => event,
                Err(BroadcastStreamRecvError::Lagged(count)) => NetworkEvent::Missed(count),
            })
        })
    }
}

/// What a guest's policy decides, from now on.
#[derive(Debug)]
pub struct PolicyEvents {
    events: NetworkEvents,
    guest: GuestName,
}

impl PolicyEvents {
    pub(crate) fn new(events: NetworkEvents, guest: GuestName) -> Self {
        Self { events, guest }
    }
}

impl Stream for PolicyEvents {
    type Item = PolicyEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PolicyEvent>> {
        loop {
            match Pin::new(&mut self.events).poll_next(cx) {
                Poll::Ready(Some(NetworkEvent::Policy(event))) if event.guest == self.guest => {
                    return Poll::Ready(Some(event));
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}
