//! Neighbour and router discovery for IPv6 (RFC 4861), with DNS (RFC 8106).

use std::net::Ipv6Addr;
use std::time::Duration;

use capsa_core::MacAddress;

use crate::bytes::Reader;

/// The gateway's link-local address, from which routers must speak.
pub(crate) const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xca95, 0, 1);
/// All nodes on the link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// How often routes and prefixes are told without being asked for; a third of their lifetime.
pub(crate) const INTERVAL: Duration = Duration::from_secs(600);
const LIFETIME: u32 = 1800;

/// A message that the gateway answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NdpMessage {
    /// Who has this address?
    NeighborSolicitation { target: Ipv6Addr },
    /// Is there a router?
    RouterSolicitation,
    /// Somebody has an address.
    NeighborAdvertisement { target: Ipv6Addr },
    /// Whoever sends it plays the router.
    RouterAdvertisement,
    /// Somebody who plays the router wants packets elsewhere.
    Redirect,
}

impl NdpMessage {
    /// Reads an ICMPv6 message that came with a hop limit of 255.
    pub(crate) fn parse(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message);
        let (kind, code) = (reader.u8()?, reader.u8()?);
        reader.take(6)?;
        match (kind, code) {
            (133, 0) => Some(Self::RouterSolicitation),
            (134, 0) => Some(Self::RouterAdvertisement),
            (135, 0) => Some(Self::NeighborSolicitation {
                target: Ipv6Addr::from(reader.array::<16>()?),
            }),
            (136, 0) => Some(Self::NeighborAdvertisement {
                target: Ipv6Addr::from(reader.array::<16>()?),
            }),
            (137, 0) => Some(Self::Redirect),
            _ => None,
        }
    }
}

/// Head and rest of the advertisement that says `mac` has `target`; a router's, to a request.
pub(crate) fn neighbor_advertisement(
    target: Ipv6Addr,
    mac: MacAddress,
) -> ((u8, u8, [u8; 4]), Vec<u8>) {
    let mut rest = target.octets().to_vec();
    rest.extend_from_slice(&[2, 1]);
    rest.extend_from_slice(&mac.0);
    ((136, 0, [0xe0, 0, 0, 0]), rest)
}

/// What a router advertisement says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advertised {
    pub(crate) mac: MacAddress,
    pub(crate) prefix: Ipv6Addr,
    pub(crate) mtu: u16,
    /// The DNS server; `None` for none.
    pub(crate) dns: Option<Ipv6Addr>,
    /// Whether there is a way out.
    pub(crate) router: bool,
    /// Whether guests make addresses for themselves.
    pub(crate) autonomous: bool,
}

/// Head and rest of a router advertisement.
pub(crate) fn router_advertisement(what: &Advertised) -> ((u8, u8, [u8; 4]), Vec<u8>) {
    let lifetime = if what.router { LIFETIME as u16 } else { 0 };
    let [high, low] = lifetime.to_be_bytes();
    // Reachable time and retransmission timer are left to the guest.
    let mut rest = vec![0; 8];
    // Source link-layer address.
    rest.extend_from_slice(&[1, 1]);
    rest.extend_from_slice(&what.mac.0);
    // MTU.
    rest.extend_from_slice(&[5, 1, 0, 0, 0, 0]);
    rest.extend_from_slice(&what.mtu.to_be_bytes());
    // Prefix: 64 bits, on the link.
    let flags = 0x80 | if what.autonomous { 0x40 } else { 0 };
    rest.extend_from_slice(&[3, 4, 64, flags]);
    rest.extend_from_slice(&(LIFETIME * 4).to_be_bytes());
    rest.extend_from_slice(&(LIFETIME * 4).to_be_bytes());
    rest.extend_from_slice(&[0; 4]);
    rest.extend_from_slice(&what.prefix.octets());
    if let Some(dns) = what.dns {
        rest.extend_from_slice(&[25, 3, 0, 0]);
        rest.extend_from_slice(&LIFETIME.to_be_bytes());
        rest.extend_from_slice(&dns.octets());
    }
    // Hop limit 64, addresses are not handed out by DHCPv6.
    ((134, 0, [64, 0, high, low]), rest)
}
