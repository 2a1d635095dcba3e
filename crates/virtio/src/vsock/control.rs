//! The socket between a device and the program that uses it: one message a packet, a stream's descriptor with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// No message is longer.
const MAX_MESSAGE: usize = 64;

/// From the program to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDevice {
    /// The guest may connect to this host port from now on.
    Listen {
        /// The port.
        port: u32,
    },
    /// It may not any more. Connections that there are stay.
    Unlisten {
        /// The port.
        port: u32,
    },
    /// Comes with a connected Unix stream socket: connect it to a port of the guest.
    Connect {
        /// Comes back with the answer.
        id: u64,
        /// The guest's port.
        guest_port: u32,
    },
}

/// From the device to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDevice {
    /// Comes with a connected Unix stream socket: the guest has connected to a host port.
    Accepted {
        /// The host's port.
        host_port: u32,
        /// The guest's port.
        guest_port: u32,
    },
    /// The guest has accepted.
    Connected {
        /// Of the request.
        id: u64,
    },
    /// The guest has refused, or there is no guest.
    Refused {
        /// Of the request.
        id: u64,
    },
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nothing there, or no room, for now.
    #[error("the control socket is not ready")]
    WouldBlock,
    /// The other side is gone.
    #[error("the other side of the control socket is gone")]
    Closed,
    /// What came is not a message.
    #[error("a packet on the control socket is not a message of this version")]
    Malformed,
    /// The host failed.
    #[error("the control socket failed: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for ControlError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::WouldBlock,
            Errno::PIPE | Errno::CONNRESET => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// One end of the socket. Both methods return at once.
#[derive(Debug)]
pub struct ControlSocket(OwnedFd);

impl ControlSocket {
    /// Both ends: one for the device, one for the program that uses it.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, two) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(one), Self(two)))
    }

    /// An end that came from another process.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends a message, with a descriptor if it has one.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        stream: Option<BorrowedFd<'_>>,
    ) -> Result<(), ControlError> {
        let mut bytes = [0; MAX_MESSAGE];
        let bytes = postcard::to_slice(message, &mut bytes).map_err(|_| ControlError::Malformed)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let streams = stream.as_slice();
        if !streams.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(streams)) {
            return Err(ControlError::Malformed);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        loop {
            match sendmsg(&self.0, &[IoSlice::new(bytes)], &mut ancillary, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives a message, and the descriptor that came with it.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn receive<M: DeserializeOwned>(&self) -> Result<(M, Option<OwnedFd>), ControlError> {
        let mut bytes = [0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                flags,
            ) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        // Taken even if the message is broken, so that they are closed.
        let mut streams = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                streams.extend(descriptors);
            }
        }
        if received.bytes == 0 {
            return Err(ControlError::Closed);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ControlError::Malformed);
        }
        let bytes = bytes.get(..received.bytes).unwrap_or_default();
        let message = postcard::from_bytes(bytes).map_err(|_| ControlError::Malformed)?;
        Ok((message, streams.pop()))
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ControlSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl From<ControlSocket> for OwnedFd {
    fn from(socket: ControlSocket) -> Self {
        socket.0
    }
}
