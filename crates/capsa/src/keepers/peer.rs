//! Who is at the other end of a control socket.

use tokio::net::UnixStream;

/// Whether the same user is at the other end, or root.
pub(crate) fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::getuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) => peer.uid() == own || peer.uid() == 0,
        Err(_) => false,
    }
}
