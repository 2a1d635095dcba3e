//! The protocol over a Unix stream socket in a runtime.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::frame::{FrameDecoder, FrameError, MAX_DESCRIPTORS, decode, encode};
use crate::hello::{HELLO_BYTES, Hello, HelloError};

/// How many descriptors may wait for the rest of their messages. One call of the system hands over
/// those of one message at most.
const MAX_WAITING_DESCRIPTORS: usize = 4 * MAX_DESCRIPTORS;
/// How much is read at once, in bytes.
const READ_BYTES: usize = 16 << 10;

/// Why nothing more can be sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IpcError {
    /// The other side cannot be talked to.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// It sent something that is no message, or the message to be sent does not fit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It sent a message without its descriptors, or descriptors without a message.
    #[error("descriptors and messages do not fit together")]
    Descriptors,
    /// It went away in the middle of a message.
    #[error("the other side ended in the middle of a message")]
    Truncated,
    /// The operating system's error.
    #[error("the control socket failed: {0}")]
    Io(#[from] io::Error),
}

/// Greets the other side of `socket` and checks its version.
///
/// # Errors
/// [`IpcError::Hello`] where it has another version or is a stranger, [`IpcError::Truncated`] where
/// it went away.
pub async fn connect<S, R>(socket: UnixStream) -> Result<(IpcSender<S>, IpcReceiver<R>), IpcError> {
    prepare(&socket)?;
    let socket = Arc::new(socket);
    let sender = IpcSender {
        socket: socket.clone(),
        order: Mutex::new(()),
        kind: PhantomData,
    };
    let mut receiver = IpcReceiver {
        socket,
        decoder: FrameDecoder::default(),
        descriptors: VecDeque::new(),
        kind: PhantomData,
    };
    // A peer that has gone may have left a message that tells why: to be read all the same.
    let greeted = send_all(&sender.socket, &Hello::OURS.to_bytes(), &[]).await;
    match (receiver.read_hello().await, greeted) {
        (Ok(hello), _) => Hello::check(hello)?,
        (Err(IpcError::Truncated), Err(error)) => return Err(error.into()),
        (Err(error), _) => return Err(error),
    };
    Ok((sender, receiver))
}

/// Linux suppresses SIGPIPE with a flag on each call, macOS with an option of the socket.
#[cfg(target_vendor = "apple")]
fn prepare(socket: &UnixStream) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_nosigpipe(socket, true)?)
}

#[cfg(not(target_vendor = "apple"))]
#[expect(clippy::unnecessary_wraps, reason = "it can fail on macOS")]
fn prepare(_socket: &UnixStream) -> io::Result<()> {
    Ok(())
}

#[cfg(target_vendor = "apple")]
const SEND_FLAGS: SendFlags = SendFlags::empty();
#[cfg(not(target_vendor = "apple"))]
const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;

#[cfg(target_vendor = "apple")]
const RECEIVE_FLAGS: RecvFlags = RecvFlags::empty();
#[cfg(not(target_vendor = "apple"))]
const RECEIVE_FLAGS: RecvFlags = RecvFlags::CMSG_CLOEXEC;

/// Sends messages of type `S`, whole and in order, from any task.
#[derive(Debug)]
pub struct IpcSender<S> {
    socket: Arc<UnixStream>,
    order: Mutex<()>,
    kind: PhantomData<fn(S)>,
}

impl<S: Serialize> IpcSender<S> {
    /// Sends one message with descriptors beside it. Not to be cancelled: a message that was begun
    /// must be finished.
    ///
    /// # Errors
    /// [`IpcError::Frame`] for a message that does not fit, [`IpcError::Io`].
    pub async fn send(&self, message: &S, descriptors: &[BorrowedFd<'_>]) -> Result<(), IpcError> {
        let frame = encode(message, descriptors.len())?;
        let _order = self.order.lock().await;
        Ok(send_all(&self.socket, &frame, descriptors).await?)
    }
}

async fn send_all(
    socket: &UnixStream,
    mut bytes: &[u8],
    mut descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let pieces = [IoSlice::new(bytes)];
            Ok(sendmsg(socket, &pieces, &mut ancillary, SEND_FLAGS)?)
        });
        match sent {
            Ok(count) => {
                bytes = bytes.get(count..).unwrap_or_default();
                // They went with the first byte.
                descriptors = &[];
            }
            Err(error) if is_no_failure(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn is_no_failure(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Receives messages of type `R`.
#[derive(Debug)]
pub struct IpcReceiver<R> {
    socket: Arc<UnixStream>,
    decoder: FrameDecoder,
    descriptors: VecDeque<OwnedFd>,
    kind: PhantomData<fn() -> R>,
}

impl<R: DeserializeOwned> IpcReceiver<R> {
    /// Receives the next message with its descriptors; `None` when the other side is gone. No message
    /// is lost when this is cancelled.
    ///
    /// # Errors
    /// [`IpcError`]; nothing more can be received then.
    pub async fn receive(&mut self) -> Result<Option<(R, Vec<OwnedFd>)>, IpcError> {
        loop {
            if let Some((message, count)) = self.decoder.next_message()? {
                let message = decode(&message)?;
                if count > self.descriptors.len() {
                    return Err(IpcError::Descriptors);
                }
                let descriptors = self.descriptors.drain(..count).collect();
                return Ok(Some((message, descriptors)));
            }
            let mut buffer = [0; READ_BYTES];
            match self.read(&mut buffer).await? {
                0 if !self.decoder.is_empty() => return Err(IpcError::Truncated),
                0 => return Ok(None),
                count => self.decoder.push(buffer.get(..count).unwrap_or_default()),
            }
        }
    }
}

impl<R> IpcReceiver<R> {
    async fn read_hello(&mut self) -> Result<[u8; HELLO_BYTES], IpcError> {
        let mut hello = [0; HELLO_BYTES];
        let mut done = 0;
        while let Some(rest @ [_, ..]) = hello.get_mut(done..) {
            match self.read(rest).await? {
                0 => return Err(IpcError::Truncated),
                count => done += count,
            }
        }
        Ok(hello)
    }

    /// Reads bytes and keeps the descriptors that came with them.
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, IpcError> {
        loop {
            self.socket.readable().await?;
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received = self.socket.try_io(Interest::READABLE, || {
                let mut pieces = [IoSliceMut::new(buffer)];
                Ok(recvmsg(
                    self.socket.as_fd(),
                    &mut pieces,
                    &mut ancillary,
                    RECEIVE_FLAGS,
                )?)
            });
            let received = match received {
                Ok(received) => received,
                Err(error) if is_no_failure(&error) => continue,
                // What a peer leaves unread when it goes resets the connection.
                Err(error) if error.raw_os_error() == Some(Errno::CONNRESET.raw_os_error()) => {
                    return Ok(0);
                }
                Err(error) => return Err(error.into()),
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                }
            }
            if received.flags.contains(ReturnFlags::CTRUNC)
                || self.descriptors.len() > MAX_WAITING_DESCRIPTORS
            {
                return Err(IpcError::Descriptors);
            }
            #[cfg(target_vendor = "apple")]
            for descriptor in &self.descriptors {
                rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::CLOEXEC)
                    .map_err(io::Error::from)?;
            }
            return Ok(received.bytes);
        }
    }
}
