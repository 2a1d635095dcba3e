//! Address resolution for IPv4 (RFC 826).

use std::net::Ipv4Addr;

use capsa_core::MacAddress;

use crate::bytes::{Reader, put};

/// An ARP message for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arp {
    pub(crate) request: bool,
    pub(crate) sender_mac: MacAddress,
    pub(crate) sender: Ipv4Addr,
    pub(crate) target: Ipv4Addr,
}

impl Arp {
    pub(crate) fn parse(data: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(data);
        let kind: [u8; 6] = reader.array()?;
        let operation = reader.u16()?;
        let sender_mac = MacAddress(reader.array()?);
        let sender = Ipv4Addr::from(reader.array::<4>()?);
        reader.take(6)?;
        let target = Ipv4Addr::from(reader.array::<4>()?);
        (kind == [0, 1, 8, 0, 6, 4] && matches!(operation, 1 | 2)).then_some(Self {
            request: operation == 1,
            sender_mac,
            sender,
            target,
        })
    }

    /// The reply that says `mac` has the target's address.
    pub(crate) fn reply(&self, mac: MacAddress) -> [u8; 28] {
        let mut message = [0; 28];
        put(&mut message, 0, &[0, 1, 8, 0, 6, 4, 0, 2]);
        put(&mut message, 8, &mac.0);
        put(&mut message, 14, &self.target.octets());
        put(&mut message, 18, &self.sender_mac.0);
        put(&mut message, 24, &self.sender.octets());
        message
    }
}
