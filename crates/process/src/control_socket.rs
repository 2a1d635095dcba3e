//! A control socket: messages with boundaries (`SOCK_SEQPACKET`), each with descriptors beside it
//! (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest message in bytes. A peer that sends more is not answered.
pub const MAX_MESSAGE_BYTES: usize = 64 << 10;
/// The most descriptors beside one message; the kernel's own limit is 253.
pub const MAX_DESCRIPTORS: usize = 64;

/// Why a message could not be received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// It is longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of more than {MAX_MESSAGE_BYTES} bytes came in")]
    TooLong,
    /// It has more than [`MAX_DESCRIPTORS`] descriptors, or this process has too many.
    #[error("descriptors of a message were lost: this process has as many open as it may")]
    DescriptorsLost,
    /// The operating system's error.
    #[error("cannot receive from the control socket: {0}")]
    Io(#[from] io::Error),
}

/// Why a message could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It is longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes is too long: {MAX_MESSAGE_BYTES} are the most")]
    TooLong(usize),
    /// There are more than [`MAX_DESCRIPTORS`] descriptors.
    #[error("{0} descriptors are too many for one message: {MAX_DESCRIPTORS} are the most")]
    TooManyDescriptors(usize),
    /// The operating system's error.
    #[error("cannot send to the control socket: {0}")]
    Io(#[from] io::Error),
}

/// Receives one message on a socket, into `buffer`; `None` when the other side is gone. Waits where
/// the socket is a blocking one.
///
/// # Errors
/// [`ReceiveError`]; [`io::ErrorKind::WouldBlock`] within where a non-blocking socket has none.
pub fn receive(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> Result<Option<Vec<OwnedFd>>, ReceiveError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    buffer.resize(MAX_MESSAGE_BYTES, 0);
    let received = loop {
        let mut pieces = [IoSliceMut::new(buffer)];
        match recvmsg(
            &socket,
            &mut pieces,
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        ) {
            // A peer that went and left something unread resets the connection. That is reported
            // once, ahead of the messages that it had sent.
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Err(error) => return Err(io::Error::from(error).into()),
            Ok(received) => break received,
        }
    };
    let descriptors: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(ReceiveError::TooLong);
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(ReceiveError::DescriptorsLost);
    }
    // An empty message is the end of the connection: nobody sends one.
    if received.bytes == 0 {
        return Ok(None);
    }
    buffer.truncate(received.bytes);
    Ok(Some(descriptors))
}

/// Sends one message, which is not empty. Waits where the socket is a blocking one.
///
/// # Errors
/// [`SendError`]; [`io::ErrorKind::WouldBlock`] within where a non-blocking socket has no room.
pub fn send(
    socket: impl AsFd,
    message: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), SendError> {
    if message.len() > MAX_MESSAGE_BYTES {
        return Err(SendError::TooLong(message.len()));
    }
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(SendError::TooManyDescriptors(descriptors.len()));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // There is room for MAX_DESCRIPTORS.
        ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        let pieces = [IoSlice::new(message)];
        match sendmsg(&socket, &pieces, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
            Ok(_whole) => return Ok(()),
        }
    }
}

/// The library's end of a control socket.
#[derive(Debug)]
pub struct ControlSocket(AsyncFd<OwnedFd>);

impl ControlSocket {
    /// Makes a connected pair: the library's end and the (blocking) one of the other side. Must be
    /// called in a runtime with I/O enabled.
    ///
    /// # Errors
    /// Where no sockets can be made.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        // SAFETY: an OwnedFd keeps one descriptor open from here to its drop.
        let ours = unsafe {
            AsyncFd::register_with_interest(ours, Interest::READABLE | Interest::WRITABLE)?
        };
        Ok((Self(ours), theirs))
    }

    /// Sends one message, which is not empty, with descriptors beside it.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(
        &self,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), SendError> {
        loop {
            let mut ready = self.0.writable().await?;
            match send(self.0.get_ref(), message, descriptors) {
                Err(SendError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                }
                result => return result,
            }
        }
    }

    /// Receives the next message into `buffer`; `None` when the other side is gone. No message is
    /// lost when this is cancelled.
    ///
    /// # Errors
    /// [`ReceiveError`].
    pub async fn receive(
        &self,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Vec<OwnedFd>>, ReceiveError> {
        loop {
            let mut ready = self.0.readable().await?;
            match receive(self.0.get_ref(), buffer) {
                Err(ReceiveError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                }
                result => return result,
            }
        }
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    #[tokio::test]
    async fn a_message_arrives_whole_with_its_descriptors() {
        // Arrange
        let (ours, theirs) = ControlSocket::pair().unwrap();
        let path = std::env::temp_dir().join(format!("capsa-control-{}", std::process::id()));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(b"inside").unwrap();
        file.rewind().unwrap();

        // Act
        ours.send(b"one", &[file.as_fd()]).await.unwrap();
        ours.send(&[7; MAX_MESSAGE_BYTES], &[]).await.unwrap();
        let mut buffer = Vec::new();
        let mut first = receive(&theirs, &mut buffer).unwrap().unwrap();
        let first_bytes = buffer.clone();
        let second = receive(&theirs, &mut buffer).unwrap().unwrap();

        // Assert
        assert_eq!(first_bytes, b"one");
        let mut text = String::new();
        File::from(first.remove(0))
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "inside");
        assert!(second.is_empty());
        assert_eq!(buffer, [7; MAX_MESSAGE_BYTES]);
    }

    #[tokio::test]
    async fn a_peer_that_went_is_the_end() {
        let (ours, theirs) = ControlSocket::pair().unwrap();
        send(&theirs, b"last", &[]).unwrap();
        ours.send(b"never read", &[]).await.unwrap();
        drop(theirs);
        let mut buffer = Vec::new();

        let last = ours.receive(&mut buffer).await.unwrap();
        let end = ours.receive(&mut buffer).await.unwrap();

        assert!(last.is_some());
        assert!(end.is_none());
    }

    #[tokio::test]
    async fn a_message_beyond_the_limit_is_an_error_on_both_sides() {
        let (ours, theirs) = ControlSocket::pair().unwrap();
        let long = vec![0; MAX_MESSAGE_BYTES + 1];
        assert!(matches!(
            ours.send(&long, &[]).await,
            Err(SendError::TooLong(_))
        ));

        rustix::net::send(&theirs, &long, SendFlags::empty()).unwrap();

        let received = ours.receive(&mut Vec::new()).await;
        assert!(matches!(received, Err(ReceiveError::TooLong)));
    }
}
