//! The network interface of a VM.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The guest's network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The hardware address; `None` for one made from the VM's name or at random.
    pub mac: Option<MacAddress>,
    /// A fixed IPv4 address; `None` for one given by DHCP.
    pub ipv4: Option<Ipv4Addr>,
    /// A fixed IPv6 address; `None` for one made from router advertisements.
    pub ipv6: Option<Ipv6Addr>,
    /// The largest IP packet, which the guest's driver is told, in bytes; `None` for 1500.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// What it leads to.
    #[serde(default)]
    pub mode: NetworkMode,
}

impl NetworkSpec {
    /// The MTU where nothing else is said.
    pub const DEFAULT_MTU: u16 = 1500;

    /// The largest IP packet, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(Self::DEFAULT_MTU)
    }
}

/// What a guest's network interface leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NetworkMode {
    /// A network of the guest's own, from which it reaches the outside as its policy lets it, by the
    /// caller's own connections.
    #[default]
    UserNat,
    /// The network of this name, together with other guests.
    Cluster(String),
}

/// What frames look like on the socket of [`take_network_socket`], one frame a message.
///
/// [`take_network_socket`]: crate::BackendVmHandle::take_network_socket
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NetworkFrames {
    /// An Ethernet frame.
    #[default]
    Ethernet,
    /// A virtio-net header of 12 bytes and an Ethernet frame, with offloads.
    VirtioHeader,
}

/// An Ethernet hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let complete = bytes.iter_mut().all(|byte| {
            parts
                .next()
                .filter(|part| part.len() == 2 && !part.starts_with('+'))
                .is_some_and(|part| {
                    u8::from_str_radix(part, 16)
                        .map(|value| *byte = value)
                        .is_ok()
                })
        });
        if !complete || parts.next().is_some() || bytes[0] & 1 == 1 {
            return Err(Error::invalid_setting(
                "mac",
                text,
                "it is not the hardware address of one interface",
                "write six bytes in hexadecimal with colons between, the first one even, \
                 such as 52:54:00:12:34:56",
            ));
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_parse_and_show_alike() {
        let mac: MacAddress = "52:54:00:12:34:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:12:34:ff");
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "+2:54:00:12:34:56",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
