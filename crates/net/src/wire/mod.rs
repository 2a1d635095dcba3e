//! Ethernet, IP and what is in it: reading what a guest sent and writing what it gets.

pub(crate) mod build;
pub(crate) mod checksum;
pub(crate) mod frame;
pub(crate) mod ip;
pub(crate) mod offload;
pub(crate) mod reassembly;

/// Bytes of an Ethernet header (IEEE 802.3, without tags).
pub(crate) const ETHERNET: usize = 14;
/// Bytes of a virtio-net header (virtio 1.2, section 5.1.6).
pub(crate) const VNET: usize = 12;
/// The largest Ethernet frame: header and 64 KiB less one of IP.
pub(crate) const MAX_FRAME: usize = ETHERNET + 65_535;

/// Ethernet types.
pub(crate) mod ethertype {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const ARP: u16 = 0x0806;
    pub(crate) const IPV6: u16 = 0x86dd;
}

/// IP protocol numbers.
pub(crate) mod protocol {
    pub(crate) const ICMP: u8 = 1;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const UDP: u8 = 17;
    pub(crate) const ICMPV6: u8 = 58;
}

/// TCP flags.
pub(crate) mod tcp_flag {
    pub(crate) const FIN: u8 = 1;
    pub(crate) const SYN: u8 = 2;
    pub(crate) const RST: u8 = 4;
    pub(crate) const PSH: u8 = 8;
    pub(crate) const ACK: u8 = 16;
}
