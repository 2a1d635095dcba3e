//! What the device is set up with, its feature bits (§5.1.3) and its configuration space (§5.1.4).

use serde::{Deserialize, Serialize};

/// `VIRTIO_NET_F_CSUM`: the device finishes checksums.
pub(super) const F_CSUM: u64 = 1;
/// `VIRTIO_NET_F_GUEST_CSUM`: the driver finishes checksums.
pub(super) const F_GUEST_CSUM: u64 = 1 << 1;
/// `VIRTIO_NET_F_MTU`: `mtu` is valid.
pub(super) const F_MTU: u64 = 1 << 3;
/// `VIRTIO_NET_F_MAC`: `mac` is valid.
pub(super) const F_MAC: u64 = 1 << 5;
/// `VIRTIO_NET_F_GUEST_TSO4`: the driver takes large TCP segments over IPv4.
pub(super) const F_GUEST_TSO4: u64 = 1 << 7;
/// `VIRTIO_NET_F_GUEST_TSO6`: the driver takes large TCP segments over IPv6.
pub(super) const F_GUEST_TSO6: u64 = 1 << 8;
/// `VIRTIO_NET_F_HOST_TSO4`: the device takes large TCP segments over IPv4.
pub(super) const F_HOST_TSO4: u64 = 1 << 11;
/// `VIRTIO_NET_F_HOST_TSO6`: the device takes large TCP segments over IPv6.
pub(super) const F_HOST_TSO6: u64 = 1 << 12;
/// `VIRTIO_NET_F_MRG_RXBUF`: a frame may fill several of the driver's buffers.
pub(super) const F_MRG_RXBUF: u64 = 1 << 15;
/// `VIRTIO_NET_F_STATUS`: `status` is valid.
pub(super) const F_STATUS: u64 = 1 << 16;

pub(super) const FEATURES: u64 = F_CSUM
    | F_GUEST_CSUM
    | F_MTU
    | F_MAC
    | F_GUEST_TSO4
    | F_GUEST_TSO6
    | F_HOST_TSO4
    | F_HOST_TSO6
    | F_MRG_RXBUF
    | F_STATUS;

/// Queue pairs. More need `VIRTIO_NET_F_MQ` and a control queue, and a socket for each.
pub(super) const PAIRS: u16 = 1;

/// Bytes of the virtio-net header that stands before each frame (§5.1.6, with `num_buffers`).
pub(super) const HEADER: usize = 12;
/// Bytes of an Ethernet header: no frame is shorter.
pub(super) const ETHERNET: usize = 14;
/// The longest message: header, Ethernet header and the longest IP packet.
pub(super) const MAX_MESSAGE: usize = HEADER + ETHERNET + 65_535;

/// The smallest MTU: what IPv6 asks for.
pub const MIN_MTU: u16 = 1280;
/// The largest MTU.
pub const MAX_MTU: u16 = 65_521;

/// What a network device is set up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The hardware address that the driver is told: that of one interface, so the first byte is even.
    pub mac: [u8; 6],
    /// The largest IP packet that the driver is told, [`MIN_MTU`] to [`MAX_MTU`].
    pub mtu: u16,
}

/// Why there can be no such network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetConfigError {
    /// A group's address.
    #[error("the hardware address {0:02x?} is that of a group: use one whose first byte is even")]
    Mac([u8; 6]),
    /// Out of range.
    #[error("the MTU is {0}: use {MIN_MTU} to {MAX_MTU}")]
    Mtu(u16),
}

impl NetConfig {
    /// Checks both.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self) -> Result<(), NetConfigError> {
        let [first, ..] = self.mac;
        if first & 1 != 0 {
            return Err(NetConfigError::Mac(self.mac));
        }
        if !(MIN_MTU..=MAX_MTU).contains(&self.mtu) {
            return Err(NetConfigError::Mtu(self.mtu));
        }
        Ok(())
    }

    /// `mac`, `status`, `max_virtqueue_pairs`, `mtu`.
    pub(super) fn bytes(&self, link_up: bool) -> [u8; 12] {
        let [a, b, c, d, e, f] = self.mac;
        let [mtu_low, mtu_high] = self.mtu.to_le_bytes();
        let [pairs_low, pairs_high] = PAIRS.to_le_bytes();
        let status = u8::from(link_up);
        [
            a, b, c, d, e, f, status, 0, pairs_low, pairs_high, mtu_low, mtu_high,
        ]
    }
}
