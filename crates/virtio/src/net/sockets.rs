//! The socket between the device and its network.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

/// How much each end holds of frames that the other one has not taken, in bytes.
const BUFFER: usize = 4 << 20;

/// Makes a connected pair of sockets for frames, one a message: the network's end and the guest's. Both are non-blocking.
///
/// # Errors
/// No descriptors are left.
pub fn frame_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (network, guest) = socketpair(
        AddressFamily::UNIX,
        // Its buffer is counted in bytes and its end is seen, which of SOCK_DGRAM neither is true.
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    for socket in [&network, &guest] {
        // Beyond the administrator's limit only with privilege; what is granted without it will do.
        if sockopt::set_socket_send_buffer_size_force(socket, BUFFER).is_err() {
            sockopt::set_socket_send_buffer_size(socket, BUFFER)?;
        }
    }
    Ok((network, guest))
}
