//! What is known of the ports: plain data behind one lock.

use std::collections::{BTreeSet, HashMap};
use std::mem;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Connections of the guest that wait to be accepted, on one port. Further ones are refused.
pub(super) const BACKLOG: usize = 1024;

/// Connections to ports that the device was told of before the start and nobody has listened on
/// yet, all ports together. Further ones are refused.
const EARLY: usize = 64;

/// The ports of one guest.
#[derive(Debug, Default)]
pub(super) struct State {
    next_id: u64,
    /// Callers that wait for the guest's answer.
    calls: HashMap<u64, oneshot::Sender<bool>>,
    listeners: HashMap<u32, mpsc::Sender<UnixStream>>,
    /// What came before its listener did.
    early: Vec<(u32, UnixStream)>,
    /// Ports that had a listener: what comes behind it is nobody's.
    known: BTreeSet<u32>,
    /// Ports that were given back, of which the device does not know yet.
    given_back: BTreeSet<u32>,
    /// The device is gone.
    closed: bool,
}

/// What the device still has to be told about a port that is listened on from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announcement {
    /// That it is.
    Needed,
    /// Nothing: it was not told yet that the last listener went.
    Spared,
}

impl State {
    /// Enters a call; `None` when the device is gone.
    pub(super) fn call(&mut self) -> Option<(u64, oneshot::Receiver<bool>)> {
        if self.closed {
            return None;
        }
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let (answer, answered) = oneshot::channel();
        self.calls.insert(id, answer);
        Some((id, answered))
    }

    /// The caller does not wait any more.
    pub(super) fn forget_call(&mut self, id: u64) {
        self.calls.remove(&id);
    }

    /// The guest has accepted a call, or refused it.
    pub(super) fn answer(&mut self, id: u64, accepted: bool) {
        if let Some(answer) = self.calls.remove(&id) {
            // It goes unheard where the caller's future was dropped.
            let _unheard = answer.send(accepted);
        }
    }

    /// Takes `port` for a listener; `None` when it is taken.
    pub(super) fn listen(
        &mut self,
        port: u32,
    ) -> Option<(mpsc::Receiver<UnixStream>, Announcement)> {
        if self.listeners.contains_key(&port) {
            return None;
        }
        let (incoming, accepted) = mpsc::channel(BACKLOG);
        // Behind the device's end nothing comes: the receiver ends at once.
        if !self.closed {
            let (his, others) = mem::take(&mut self.early)
                .into_iter()
                .partition::<Vec<_>, _>(|(early, _)| *early == port);
            self.early = others;
            for (_, stream) in his {
                // There is room for more than are kept.
                let _full = incoming.try_send(stream);
            }
            self.known.insert(port);
            self.listeners.insert(port, incoming);
        }
        let announcement = if self.given_back.remove(&port) {
            Announcement::Spared
        } else {
            Announcement::Needed
        };
        Some((accepted, announcement))
    }

    /// Gives `port` back.
    pub(super) fn unlisten(&mut self, port: u32) {
        if self.listeners.remove(&port).is_some() {
            self.given_back.insert(port);
        }
    }

    /// Hands a connection of the guest to the listener of `port`, or keeps it for the first one.
    /// Without one any more, or with too many that wait, it is dropped, which resets it.
    pub(super) fn deliver(&mut self, port: u32, stream: UnixStream) {
        if !self.closed && !self.known.contains(&port) && self.early.len() < EARLY {
            return self.early.push((port, stream));
        }
        let delivered = self
            .listeners
            .get(&port)
            .map(|incoming| incoming.try_send(stream));
        if !matches!(delivered, Some(Ok(()))) {
            tracing::debug!(port, "a guest's connection was not taken");
        }
    }

    /// Goes through the ports that were given back, in order, as long as `told` says that the device
    /// was told. Returns whether none is left.
    pub(super) fn tell_given_back(&mut self, mut told: impl FnMut(u32) -> bool) -> bool {
        while let Some(&port) = self.given_back.first() {
            if !told(port) {
                return false;
            }
            self.given_back.remove(&port);
        }
        true
    }

    /// The device is gone: nobody waits any longer.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.calls.clear();
        self.listeners.clear();
        self.early.clear();
        self.given_back.clear();
    }
}
