//! Moving bytes between a flow's stack and its socket on the host.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{Shutdown, send, shutdown};
use smoltcp::socket::tcp::{self, State};

/// The host's end of a flow.
pub(crate) struct HostEnd {
    pub(crate) fd: OwnedFd,
    /// Whether a read may find something. Readiness is told once, at its beginning.
    pub(crate) readable: bool,
    /// Whether a write may find room.
    pub(crate) writable: bool,
    /// Whether the end of the peer's stream may be behind what a short read left, so that reads go
    /// on until there is nothing.
    pub(crate) drain: bool,
    /// Whether its stream was read to the end.
    pub(crate) ended: bool,
    /// Whether the guest's end was passed on.
    pub(crate) shut: bool,
    pub(crate) received: u64,
    pub(crate) sent: u64,
}

/// The connection on the host is broken.
#[derive(Debug)]
pub(crate) struct Broken;

impl HostEnd {
    pub(crate) const fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            readable: true,
            writable: true,
            drain: true,
            ended: false,
            shut: false,
            received: 0,
            sent: 0,
        }
    }

    /// Moves bytes from the guest to the host; returns how many.
    pub(crate) fn pull(&mut self, socket: &mut tcp::Socket<'_>) -> Result<usize, Broken> {
        let mut moved = 0;
        while self.writable && socket.can_recv() {
            let fd = self.fd.as_fd();
            let result = socket.recv(|data| match send(fd, data, crate::sys::NO_SIGNAL) {
                Ok(sent) => (sent, Ok((sent, sent == data.len()))),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok((sent, whole))) => {
                    moved += sent;
                    self.writable = whole;
                }
                Ok(Err(Errno::AGAIN | Errno::NOBUFS)) => self.writable = false,
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(_)) => return Err(Broken),
                Err(_) => break,
            }
        }
        self.sent += moved as u64;
        Ok(moved)
    }

    /// Moves bytes from the host to the guest; returns how many.
    pub(crate) fn push(&mut self, socket: &mut tcp::Socket<'_>) -> Result<usize, Broken> {
        let mut moved = 0;
        while self.readable && !self.ended && socket.can_send() {
            let fd = self.fd.as_fd();
            let result = socket.send(|room| match rustix::io::read(fd, &mut *room) {
                Ok(read) => (read, Ok((read, read == room.len()))),
                Err(error) => (0, Err(error)),
            });
            match result {
                Ok(Ok((0, _))) => self.ended = true,
                Ok(Ok((read, filled))) => {
                    moved += read;
                    // A short read emptied the socket, unless its end is behind what was read.
                    self.readable = filled || self.drain;
                }
                Ok(Err(Errno::AGAIN)) => {
                    self.readable = false;
                    self.drain = false;
                }
                Ok(Err(Errno::INTR)) => {}
                Ok(Err(_)) => return Err(Broken),
                Err(_) => break,
            }
        }
        self.received += moved as u64;
        Ok(moved)
    }

    /// Passes the guest's end of stream on, once everything before it was.
    pub(crate) fn pass_end(&mut self, socket: &tcp::Socket<'_>, guest_ended: bool) {
        if guest_ended && !self.shut && !socket.can_recv() {
            // Fails when the peer is gone already, which a read tells.
            let _ = shutdown(&self.fd, Shutdown::Write);
            self.shut = true;
        }
    }
}

/// Whether the guest has ended its stream.
pub(crate) const fn guest_ended(state: State) -> bool {
    matches!(
        state,
        State::CloseWait | State::LastAck | State::Closing | State::TimeWait
    )
}
