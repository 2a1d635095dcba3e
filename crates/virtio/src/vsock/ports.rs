//! The host's side of the address space: who listens, and who calls.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::control::{ControlError, ControlSocket, FromDevice, ToDevice};

/// Most answers that wait for room in the control socket. Its reader has stopped reading then.
const MAX_ANSWERS: usize = 4096;

/// Most requests read while looking for something else.
const MAX_READ_AHEAD: usize = 256;

/// A request to connect a stream to a port of the guest.
#[derive(Debug)]
pub struct HostRequest {
    /// Comes back in [`HostPorts::answered`].
    pub id: u64,
    /// The guest's port.
    pub guest_port: u32,
    /// The stream.
    pub stream: OwnedFd,
}

/// The host's ports, as the device sees them. No method blocks.
pub trait HostPorts: Send {
    /// The guest wants to connect to `host_port`. Returns the device's end of the stream, or `None` to refuse.
    fn accept(&mut self, host_port: u32, guest_port: u32) -> Option<OwnedFd>;

    /// The descriptor that is readable when [`next_request`](Self::next_request) has something. Asked for once, when
    /// the driver is ready.
    fn requests(&self) -> Option<BorrowedFd<'_>>;

    /// The next request to connect to the guest.
    fn next_request(&mut self) -> Option<HostRequest>;

    /// Whether requests were read ahead, for which the descriptor is not readable any more.
    fn has_requests(&self) -> bool {
        false
    }

    /// Whether answers wait for the descriptor to be writable.
    fn has_answers(&self) -> bool {
        false
    }

    /// The descriptor is writable.
    fn send_answers(&mut self) {}

    /// The guest has accepted, or refused, a request.
    fn answered(&mut self, id: u64, accepted: bool);

    /// Whether no request will come any more: the descriptor is not to be watched then.
    fn is_closed(&self) -> bool {
        false
    }
}

/// Ports that are told of, and filled, over a [`ControlSocket`].
pub struct ControlPorts {
    socket: ControlSocket,
    listening: HashSet<u32>,
    /// Read while something else was looked for.
    requests: VecDeque<HostRequest>,
    answers: VecDeque<FromDevice>,
    closed: bool,
}

impl ControlPorts {
    /// The device's end of a control socket.
    pub fn new(socket: ControlSocket) -> Self {
        Self {
            socket,
            listening: HashSet::new(),
            requests: VecDeque::new(),
            answers: VecDeque::new(),
            closed: false,
        }
    }

    /// Reads what is there up to the next request to connect.
    fn read(&mut self) -> Option<HostRequest> {
        while !self.closed {
            match self.socket.receive() {
                Ok((ToDevice::Listen { port }, _)) => {
                    self.listening.insert(port);
                }
                Ok((ToDevice::Unlisten { port }, _)) => {
                    self.listening.remove(&port);
                }
                Ok((ToDevice::Connect { id, guest_port }, Some(stream))) => {
                    return Some(HostRequest {
                        id,
                        guest_port,
                        stream,
                    });
                }
                Ok((ToDevice::Connect { id, .. }, None)) => self.answered(id, false),
                Err(ControlError::WouldBlock) => return None,
                Err(ControlError::Malformed) => {
                    tracing::warn!("a message for the socket device was not understood");
                }
                Err(error) => {
                    tracing::debug!(%error, "nobody uses the socket device any more");
                    self.closed = true;
                }
            }
        }
        None
    }
}

impl HostPorts for ControlPorts {
    fn accept(&mut self, host_port: u32, guest_port: u32) -> Option<OwnedFd> {
        // Somebody may have begun to listen just now.
        while !self.listening.contains(&host_port) && self.requests.len() < MAX_READ_AHEAD {
            let Some(request) = self.read() else { break };
            self.requests.push_back(request);
        }
        if self.closed || !self.listening.contains(&host_port) {
            return None;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (ours, theirs) = pair.ok()?;
        let accepted = FromDevice::Accepted {
            host_port,
            guest_port,
        };
        // A full socket is a listener with too many connections waiting: refused, as everywhere.
        self.socket.send(&accepted, Some(theirs.as_fd())).ok()?;
        Some(ours)
    }

    fn requests(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn next_request(&mut self) -> Option<HostRequest> {
        self.requests.pop_front().or_else(|| self.read())
    }

    fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    fn send_answers(&mut self) {
        while let Some(answer) = self.answers.front() {
            match self.socket.send(answer, None) {
                Err(ControlError::WouldBlock) => return,
                _ => self.answers.pop_front(),
            };
        }
    }

    fn answered(&mut self, id: u64, accepted: bool) {
        let answer = if accepted {
            FromDevice::Connected { id }
        } else {
            FromDevice::Refused { id }
        };
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back(answer);
        }
        self.send_answers();
    }

    fn is_closed(&self) -> bool {
        self.closed
    }
}
