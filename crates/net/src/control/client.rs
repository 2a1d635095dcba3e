//! The other end of the control socket: a handle for asynchronous callers.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot, watch};

use super::codec::{Decoder, encode};
use super::{
    Event, FlowInfo, ForwardId, ForwardInfo, FromNetwork, GuestInfo, Refusal, Reply, Request,
    ToNetwork,
};
use crate::sys::send_with_fds;
use crate::{
    Forward, FrameFormat, GuestAddresses, GuestConfig, GuestName, LinkConditions, Policy, Resolver,
};

/// Events that a subscriber may be behind.
const EVENTS: usize = 4096;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The network is gone.
    #[error("the network's process has ended")]
    Ended,
    /// The network refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The request could not be sent.
    #[error("the network cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// The network replied to something else.
    #[error("the network's reply does not fit the request: use the same version on both sides")]
    Mismatch,
}

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>>;

/// Steers a running network. Cheap to clone; the network ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct ControlClient {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stream: Arc<UnixStream>,
    sending: tokio::sync::Mutex<()>,
    next: AtomicU64,
    waiting: Waiting,
    events: broadcast::Sender<Event>,
    reader: tokio::task::AbortHandle,
    /// Closes when nothing more can come.
    ended: watch::Receiver<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The reader holds the stream, too; without it the socket closes and the network ends.
        self.reader.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ControlClient {
    /// Takes the caller's end of a network's control socket. To be called on a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be used with the runtime.
    pub fn new(stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = Arc::new(UnixStream::from_std(stream)?);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (events, _) = broadcast::channel(EVENTS);
        let (reading, ended) = watch::channel(());
        let task = tokio::spawn({
            let (stream, waiting, events) = (stream.clone(), waiting.clone(), events.clone());
            async move {
                let _reading = reading;
                read(stream, waiting, events).await;
            }
        });
        Ok(Self {
            inner: Arc::new(Inner {
                stream,
                sending: tokio::sync::Mutex::new(()),
                next: AtomicU64::new(1),
                waiting,
                events,
                reader: task.abort_handle(),
                ended,
            }),
        })
    }

    /// What the network tells from now on. A receiver that is too slow is told how much it missed.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Waits until the network is gone, without keeping it.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.inner.ended.clone();
        // Nothing is ever sent on it: it closes.
        async move { while ended.changed().await.is_ok() {} }
    }

    /// Sends a request, with the descriptor that belongs to it, and waits for the reply.
    ///
    /// # Errors
    /// When the network refuses or is gone.
    pub async fn request(
        &self,
        request: Request,
        fd: Option<OwnedFd>,
    ) -> Result<Reply, ControlError> {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match lock(&self.inner.waiting).as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(ControlError::Ended),
        };
        let descriptor = fd.is_some();
        let bytes = encode(&ToNetwork {
            id,
            descriptor,
            request,
        })?;
        // On a task of its own, so that a caller who gives up leaves no half of a message.
        let inner = self.inner.clone();
        let sent = tokio::spawn(async move { inner.send(&bytes, fd).await }).await;
        if let Err(error) = sent.map_err(io::Error::other).and_then(|sent| sent) {
            if let Some(waiting) = lock(&self.inner.waiting).as_mut() {
                waiting.remove(&id);
            }
            return Err(match error.kind() {
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ControlError::Ended,
                _ => error.into(),
            });
        }
        match receiver.await {
            Ok(Reply::Refused(refusal)) => Err(refusal.into()),
            Ok(reply) => Ok(reply),
            Err(_) => Err(ControlError::Ended),
        }
    }

    async fn done(&self, request: Request, fd: Option<OwnedFd>) -> Result<(), ControlError> {
        match self.request(request, fd).await? {
            Reply::Done => Ok(()),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// Waits until the network runs.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn ping(&self) -> Result<(), ControlError> {
        self.done(Request::Ping, None).await
    }

    /// Adds a guest with its frame socket, or gives one whose link is gone a new socket.
    ///
    /// # Errors
    /// When its settings do not fit the network.
    pub async fn add_guest(
        &self,
        guest: GuestConfig,
        frames: OwnedFd,
    ) -> Result<GuestAddresses, ControlError> {
        match self
            .request(Request::AddGuest(Box::new(guest)), Some(frames))
            .await?
        {
            Reply::Guest(addresses) => Ok(addresses),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// Adds a guest with its forwards that is not connected yet.
    ///
    /// # Errors
    /// When its settings do not fit the network, or a port is in use.
    pub async fn reserve_guest(&self, guest: GuestConfig) -> Result<GuestAddresses, ControlError> {
        match self
            .request(Request::AddGuest(Box::new(guest)), None)
            .await?
        {
            Reply::Guest(addresses) => Ok(addresses),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// Connects a guest by `frames`, instead of by the socket that it may have.
    ///
    /// # Errors
    /// When there is no such guest.
    pub async fn connect_guest(
        &self,
        guest: GuestName,
        format: FrameFormat,
        frames: OwnedFd,
    ) -> Result<GuestAddresses, ControlError> {
        let request = Request::ConnectGuest(guest, format);
        match self.request(request, Some(frames)).await? {
            Reply::Guest(addresses) => Ok(addresses),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// Removes a guest with its flows and forwards.
    ///
    /// # Errors
    /// When there is none of that name.
    pub async fn remove_guest(&self, guest: GuestName) -> Result<(), ControlError> {
        self.done(Request::RemoveGuest(guest), None).await
    }

    /// Puts another policy in force.
    ///
    /// # Errors
    /// When the policy cannot be used, or there is no such guest.
    pub async fn set_policy(&self, guest: GuestName, policy: Policy) -> Result<(), ControlError> {
        self.done(Request::SetPolicy(guest, policy), None).await
    }

    /// Changes how a guest's link behaves.
    ///
    /// # Errors
    /// When the conditions are out of range, or there is no such guest.
    pub async fn set_link(
        &self,
        guest: GuestName,
        link: LinkConditions,
    ) -> Result<(), ControlError> {
        self.done(Request::SetLink(guest, link), None).await
    }

    /// Opens a port forward.
    ///
    /// # Errors
    /// When the port is in use, or there is no such guest.
    pub async fn add_forward(
        &self,
        guest: GuestName,
        forward: Forward,
    ) -> Result<ForwardInfo, ControlError> {
        match self
            .request(Request::AddForward(guest, forward), None)
            .await?
        {
            Reply::Forward(info) => Ok(info),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// Closes a port forward.
    ///
    /// # Errors
    /// When there is none.
    pub async fn remove_forward(&self, id: ForwardId) -> Result<(), ControlError> {
        self.done(Request::RemoveForward(id), None).await
    }

    /// The open forwards.
    ///
    /// # Errors
    /// When the network has ended.
    pub async fn forwards(&self) -> Result<Vec<ForwardInfo>, ControlError> {
        match self.request(Request::Forwards, None).await? {
            Reply::Forwards(forwards) => Ok(forwards),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// The guests and what they did.
    ///
    /// # Errors
    /// When the network has ended.
    pub async fn guests(&self) -> Result<Vec<GuestInfo>, ControlError> {
        match self.request(Request::Guests, None).await? {
            Reply::Guests(guests) => Ok(guests),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// A guest's flows.
    ///
    /// # Errors
    /// When there is no such guest.
    pub async fn flows(&self, guest: GuestName) -> Result<Vec<FlowInfo>, ControlError> {
        match self.request(Request::Flows(guest), None).await? {
            Reply::Flows(flows) => Ok(flows),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// The smallest allow-list that covers what a guest did while its policy only watched.
    ///
    /// # Errors
    /// When there is no such guest.
    pub async fn learned(&self, guest: GuestName) -> Result<Policy, ControlError> {
        match self.request(Request::Learned(guest), None).await? {
            Reply::Learned(policy, _) => Ok(policy),
            _ => Err(ControlError::Mismatch),
        }
    }

    /// Writes a guest's frames, or everybody's, to a file as pcapng, up to `most` bytes.
    ///
    /// # Errors
    /// When there is no such guest, or the file cannot be written.
    pub async fn start_capture(
        &self,
        guest: Option<GuestName>,
        file: OwnedFd,
        most: u64,
    ) -> Result<(), ControlError> {
        self.done(Request::StartCapture(guest, most), Some(file))
            .await
    }

    /// Ends the capture.
    ///
    /// # Errors
    /// When the file could not be written.
    pub async fn stop_capture(&self) -> Result<(), ControlError> {
        self.done(Request::StopCapture, None).await
    }

    /// Whether each decision of a policy becomes an event.
    ///
    /// # Errors
    /// When the network has ended.
    pub async fn subscribe_policy(&self, on: bool) -> Result<(), ControlError> {
        self.done(Request::SubscribePolicy(on), None).await
    }

    /// Changes where DNS answers come from.
    ///
    /// # Errors
    /// When a server cannot be one.
    pub async fn set_resolver(&self, resolver: Resolver) -> Result<(), ControlError> {
        self.done(Request::SetResolver(resolver), None).await
    }

    /// Ends the network.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn shutdown(&self) -> Result<(), ControlError> {
        self.done(Request::Shutdown, None).await
    }
}

impl Inner {
    async fn send(&self, bytes: &[u8], fd: Option<OwnedFd>) -> io::Result<()> {
        let _turn = self.sending.lock().await;
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let sent = self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let fds: Vec<_> = fd.iter().filter(|_| at == 0).map(AsFd::as_fd).collect();
                    send_with_fds(self.stream.as_fd(), rest, &fds)
                })
                .await?;
            at += sent;
        }
        Ok(())
    }
}

/// Hands replies and events to those who wait for them, until the stream ends.
async fn read(stream: Arc<UnixStream>, waiting: Waiting, events: broadcast::Sender<Event>) {
    let mut decoder = Decoder::default();
    loop {
        let read = stream
            .async_io(Interest::READABLE, || decoder.read(stream.as_fd()))
            .await;
        if !matches!(read, Ok(true)) {
            break;
        }
        loop {
            match decoder.next::<FromNetwork>() {
                Ok(Some(FromNetwork::Reply(id, reply))) => {
                    let waiter = lock(&waiting)
                        .as_mut()
                        .and_then(|waiting| waiting.remove(&id));
                    if let Some(waiter) = waiter {
                        // A caller that gave up does not want it.
                        let _ = waiter.send(*reply);
                    }
                }
                Ok(Some(FromNetwork::Event(event))) => {
                    // Nobody may be listening.
                    let _ = events.send(event);
                }
                Ok(None) => break,
                Err(_) => {
                    lock(&waiting).take();
                    return;
                }
            }
        }
    }
    lock(&waiting).take();
}
