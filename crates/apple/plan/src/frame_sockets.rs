//! The network interface: a pair of datagram sockets, one Ethernet frame a datagram.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

/// How much a socket holds of frames on their way out, in bytes: on macOS also the longest datagram.
const SEND_BYTES: usize = 1 << 20;
/// How much it holds of frames that wait to be read, in bytes. Apple's documentation of the file
/// handle attachment asks for two to four times as much.
const RECEIVE_BYTES: usize = 4 << 20;

/// Makes a connected pair of datagram sockets for Ethernet frames: the host's end and the guest's.
///
/// # Errors
/// The operating system's.
pub fn frame_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (host, guest) = socketpair(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::empty(),
        None,
    )?;
    for socket in [&host, &guest] {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::CLOEXEC)?;
        sockopt::set_socket_send_buffer_size(socket, SEND_BYTES)?;
        sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BYTES)?;
    }
    Ok((host, guest))
}
