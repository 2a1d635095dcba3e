//! Which addresses everybody on a network has.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use capsa_core::MacAddress;
use serde::{Deserialize, Serialize};

use super::{ConfigError, GuestConfig, NetworkConfig};
use crate::Cidr;

/// The gateway's hardware address, the same on every network.
pub(crate) const GATEWAY_MAC: MacAddress = MacAddress([0x02, 0xca, 0x95, 0, 0, 0x01]);

/// What a guest has to know of itself and its network when it is set up without DHCP and router
/// advertisements.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestAddresses {
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Leading bits of the IPv4 network.
    pub ipv4_prefix: u8,
    /// The IPv4 gateway and DNS server.
    pub ipv4_gateway: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Leading bits of the IPv6 network.
    pub ipv6_prefix: u8,
    /// The IPv6 gateway and DNS server.
    pub ipv6_gateway: Option<Ipv6Addr>,
    /// The largest IP packet.
    pub mtu: u16,
}

/// FNV-1a: stable between versions, which the standard library's hasher is not.
fn stable_hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for part in parts {
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash
}

/// A /64 of the unique local range (RFC 4193) which is always the same for a name.
pub(super) fn unique_local_network(name: &str) -> Cidr {
    let [_, a, b, c, d, e, f, g] = stable_hash(&["ipv6", name]).to_be_bytes();
    let pair = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    let address = Ipv6Addr::new(
        pair(0xfd, a),
        pair(b, c),
        pair(d, e),
        pair(f, g),
        0,
        0,
        0,
        0,
    );
    Cidr::new(IpAddr::V6(address), 64)
}

/// The address that stateless configuration makes from a hardware address (RFC 4291, appendix A).
fn from_mac(network: Cidr, mac: MacAddress) -> Option<Ipv6Addr> {
    let IpAddr::V6(prefix) = network.address() else {
        return None;
    };
    let [a, b, c, d, e, f] = mac.0;
    let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Some(Ipv6Addr::from(u128::from(prefix) | u128::from(id)))
}

impl NetworkConfig {
    fn nth4(&self, index: u128) -> Option<Ipv4Addr> {
        match self.ipv4?.nth(index)? {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        }
    }

    fn nth6(&self, index: u128) -> Option<Ipv6Addr> {
        match self.ipv6?.nth(index)? {
            IpAddr::V6(v6) => Some(v6),
            IpAddr::V4(_) => None,
        }
    }

    /// The gateway and DNS server.
    pub fn gateway4(&self) -> Option<Ipv4Addr> {
        self.nth4(1)
    }

    /// What leads to the host's loopback services, where the policy lets it.
    pub fn host4(&self) -> Option<Ipv4Addr> {
        self.nth4(2)
    }

    /// The gateway and DNS server.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.nth6(1)
    }

    /// What leads to the host's loopback services, where the policy lets it.
    pub fn host6(&self) -> Option<Ipv6Addr> {
        self.nth6(2)
    }

    /// The hardware address of `guest` on this network: always the same for the same names.
    pub fn mac_of(&self, guest: &GuestConfig) -> MacAddress {
        guest.mac.unwrap_or_else(|| {
            let [.., a, b, c, d] =
                stable_hash(&["mac", &self.name, guest.name.as_str()]).to_be_bytes();
            MacAddress([0x52, 0xca, a, b, c, d])
        })
    }

    /// The addresses of each guest, in the guests' order.
    ///
    /// # Errors
    /// When there are more guests than addresses.
    pub fn addresses(&self) -> Result<Vec<GuestAddresses>, ConfigError> {
        let mut taken: BTreeSet<Ipv4Addr> = self.guests.iter().filter_map(|g| g.ipv4).collect();
        self.guests
            .iter()
            .map(|guest| self.addresses_of(guest, &mut taken))
            .collect()
    }

    /// The addresses of a guest when those in `taken` are in use; adds its own to them.
    pub(crate) fn addresses_of(
        &self,
        guest: &GuestConfig,
        taken: &mut BTreeSet<Ipv4Addr>,
    ) -> Result<GuestAddresses, ConfigError> {
        let mac = self.mac_of(guest);
        let ipv4 = match (self.ipv4, guest.ipv4) {
            (None, _) => None,
            (Some(_), Some(fixed)) => Some(fixed),
            (Some(network), None) => {
                let size = 1u64 << (32 - u32::from(network.prefix().min(32)));
                let free = (3..size.saturating_sub(1))
                    .filter_map(|index| self.nth4(index.into()))
                    .find(|address| !taken.contains(address));
                Some(free.ok_or(ConfigError::NetworkFull(network))?)
            }
        };
        taken.extend(ipv4);
        Ok(GuestAddresses {
            mac,
            ipv4,
            ipv4_prefix: self.ipv4.map_or(0, |network| network.prefix()),
            ipv4_gateway: self.gateway4(),
            ipv6: match self.ipv6 {
                None => None,
                Some(network) => guest.ipv6.or_else(|| from_mac(network, mac)),
            },
            ipv6_prefix: self.ipv6.map_or(0, |network| network.prefix()),
            ipv6_gateway: self.gateway6(),
            mtu: self.mtu,
        })
    }
}
