//! The task that reads the control socket, and the handle that the VM's users call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use capsa_core::{ByteStream, Error, Result, VmExit, VmStatus, VsockListener};
use capsa_virtio::vsock::{ControlError, ControlSocket, FromDevice, ToDevice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::sync::{Notify, watch};

use super::listener::Listener;
use super::state::{Announcement, State};

/// Messages taken before other tasks get their turn.
const MESSAGES_AT_ONCE: usize = 64;

/// The caller's side of one guest's socket device. It ends with the device; dropping it ends its
/// task, and with it the listeners.
#[derive(Debug)]
pub struct VsockPorts {
    shared: Arc<Shared>,
    status: watch::Receiver<VmStatus>,
    task: tokio::task::AbortHandle,
}

#[derive(Debug)]
pub(super) struct Shared {
    socket: AsyncFd<ControlSocket>,
    state: Mutex<State>,
    /// A port was given back.
    pub(super) given_back: Notify,
}

impl VsockPorts {
    /// Serves the caller's end of a control socket. `status` tells how the VM ended, to those who
    /// wait then. Must be called in a runtime with I/O enabled.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub fn new(socket: ControlSocket, status: watch::Receiver<VmStatus>) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        // SAFETY: a ControlSocket keeps one descriptor open from here to its drop.
        let socket = unsafe { AsyncFd::register_with_interest(socket, interest)? };
        let shared = Arc::new(Shared {
            socket,
            state: Mutex::default(),
            given_back: Notify::new(),
        });
        let task = tokio::spawn(Arc::clone(&shared).serve()).abort_handle();
        Ok(Self {
            shared,
            status,
            task,
        })
    }

    /// Connects to a port of the guest. While the guest has not loaded its driver yet, this waits.
    ///
    /// # Errors
    /// [`Error::Io`] with [`io::ErrorKind::ConnectionRefused`] where nobody listens,
    /// [`Error::Ended`] after the VM did.
    pub async fn connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        let context = || format!("cannot connect to port {port} of the guest");
        let (ours, theirs) =
            UnixStream::pair().map_err(|error| Error::io("cannot make a stream", error))?;
        let theirs = OwnedFd::from(
            theirs
                .into_std()
                .map_err(|error| Error::io("cannot make a stream", error))?,
        );
        let entered = self.shared.state().call();
        let Some((id, answered)) = entered else {
            return Err(ended(self.status.clone()).await);
        };
        let _call = Call {
            id,
            shared: &self.shared,
        };
        let message = ToDevice::Connect {
            id,
            guest_port: port,
        };
        match self.shared.send(message, Some(theirs.as_fd())).await {
            Ok(()) => {}
            Err(ControlError::Closed) => return Err(ended(self.status.clone()).await),
            Err(error) => return Err(Error::io(context(), io::Error::other(error))),
        }
        drop(theirs);
        match answered.await {
            Ok(true) => Ok(Box::new(ours)),
            Ok(false) => Err(Error::io(
                context(),
                io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens on it"),
            )),
            Err(_) => Err(ended(self.status.clone()).await),
        }
    }

    /// Listens on a port of the host for the guest's connections. On return the guest can connect.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the port is taken, [`Error::Ended`] after the VM did.
    pub async fn listen(&self, port: u32) -> Result<Box<dyn VsockListener>> {
        let taken = self.shared.state().listen(port);
        let Some((incoming, announcement)) = taken else {
            return Err(Error::InvalidState {
                operation: "listen on a vsock port",
                state: format!("has a listener on port {port}"),
            });
        };
        // From here on dropping it gives the port back.
        let listener = Listener {
            port,
            incoming,
            shared: Arc::clone(&self.shared),
            status: self.status.clone(),
        };
        if announcement == Announcement::Needed {
            match self.shared.send(ToDevice::Listen { port }, None).await {
                Ok(()) => {}
                Err(ControlError::Closed) => return Err(ended(self.status.clone()).await),
                Err(error) => {
                    let context = format!("cannot listen on vsock port {port}");
                    return Err(Error::io(context, io::Error::other(error)));
                }
            }
        }
        Ok(Box::new(listener))
    }
}

impl Drop for VsockPorts {
    fn drop(&mut self) {
        self.task.abort();
        self.shared.state().close();
    }
}

/// A call that is not answered yet.
struct Call<'a> {
    id: u64,
    shared: &'a Shared,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.shared.state().forget_call(self.id);
    }
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(
        &self,
        message: ToDevice,
        stream: Option<BorrowedFd<'_>>,
    ) -> Result<(), ControlError> {
        loop {
            let mut ready = self.socket.writable().await?;
            match self.socket.get_ref().send(&message, stream) {
                Err(ControlError::WouldBlock) => ready.clear_ready(),
                sent => return sent,
            }
        }
    }

    /// Carries what the device says, and ports given back, until the device is gone.
    async fn serve(self: Arc<Self>) {
        loop {
            let carried = tokio::select! {
                readable = self.socket.readable() => match readable {
                    Ok(mut ready) => self.take(&mut ready),
                    Err(error) => Err(error.into()),
                },
                () = self.given_back.notified() => self.tell_given_back().await,
            };
            if let Err(error) = carried {
                tracing::debug!(%error, "the guest's socket device is gone");
                return self.state().close();
            }
        }
    }

    /// Takes messages while there are any.
    fn take(
        &self,
        ready: &mut tokio::io::unix::AsyncFdReadyGuard<'_, ControlSocket>,
    ) -> Result<(), ControlError> {
        for _ in 0..MESSAGES_AT_ONCE {
            match self.socket.get_ref().receive() {
                Ok((message, stream)) => self.take_one(message, stream),
                Err(ControlError::WouldBlock) => {
                    ready.clear_ready();
                    return Ok(());
                }
                // Its descriptor may have been lost, where this process has as many as it may.
                Err(ControlError::Malformed) => {
                    tracing::warn!("a message of the socket device was lost");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take_one(&self, message: FromDevice, stream: Option<OwnedFd>) {
        match (message, stream) {
            (FromDevice::Accepted { host_port, .. }, Some(stream)) => {
                let stream = StdUnixStream::from(stream);
                let watched = stream
                    .set_nonblocking(true)
                    .and_then(|()| UnixStream::from_std(stream));
                match watched {
                    Ok(stream) => self.state().deliver(host_port, stream),
                    Err(error) => tracing::warn!(%error, "a guest's connection cannot be watched"),
                }
            }
            (FromDevice::Accepted { .. }, None) => {
                tracing::warn!("a guest's connection came without its stream");
            }
            (FromDevice::Connected { id }, _) => self.state().answer(id, true),
            (FromDevice::Refused { id }, _) => self.state().answer(id, false),
        }
    }

    async fn tell_given_back(&self) -> Result<(), ControlError> {
        loop {
            let mut ready = self.socket.writable().await?;
            let mut failed = None;
            // Under the lock, so that a new listener of the same port comes before or behind.
            let all = self.state().tell_given_back(|port| {
                let sent = self
                    .socket
                    .get_ref()
                    .send(&ToDevice::Unlisten { port }, None);
                failed = sent.err();
                failed.is_none()
            });
            match failed {
                _ if all => return Ok(()),
                Some(ControlError::WouldBlock) => ready.clear_ready(),
                Some(error) => return Err(error),
                None => return Ok(()),
            }
        }
    }
}

/// The error for what came too late, or did not happen before the end.
pub(super) async fn ended(mut status: watch::Receiver<VmStatus>) -> Error {
    let last = status.wait_for(|status| status.exit().is_some()).await;
    let exit = last.ok().and_then(|status| status.exit().cloned());
    Error::Ended(exit.unwrap_or(VmExit::Killed))
}
