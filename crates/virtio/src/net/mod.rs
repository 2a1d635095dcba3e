//! The network device (§5.1): one queue pair, whose frames are messages on a host socket.
//!
//! The socket is a connected `SOCK_SEQPACKET` (or `SOCK_DGRAM`) one. Each message is the 12-byte virtio-net header (§5.1.6)
//! and an Ethernet frame, both ways, so that checksums and segmentation are left to whichever side finishes them. Whenever
//! a driver has negotiated its features the device says so on the socket.
//!
//! Nothing is copied on the way and nothing is dropped for want of room: what the socket does not take stays in the
//! transmit queue, what the guest has no buffers for stays in the socket. When the other side is gone, the guest is told
//! that its link is down.

mod config;
mod device;
mod metrics;
mod offer;
mod receive;
mod sockets;
mod state;
#[cfg(test)]
mod tests;
mod transmit;

pub use self::config::{MAX_MTU, MIN_MTU, NetConfig, NetConfigError};
pub use self::device::{Net, NetHandle};
pub use self::metrics::NetMetrics;
pub use self::sockets::frame_sockets;
pub use self::state::NetState;
