//! Addresses: networks in CIDR notation and what kind of place an address is.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a network in CIDR notation cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CidrError {
    /// It is not `ADDRESS` or `ADDRESS/PREFIX`.
    #[error("{0:?} is not an address or a network: write it like 192.0.2.0/24 or 2001:db8::/32")]
    Syntax(String),
    /// The prefix is longer than the address.
    #[error("{0:?}: the prefix length is beyond {1} bits")]
    Prefix(String, u8),
    /// Address bits beyond the prefix are set.
    #[error("{0:?} has address bits beyond its prefix: write {1}")]
    HostBits(String, Cidr),
}

/// A network: an address and the number of leading bits that count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The network of `address` with `prefix` leading bits; bits beyond them are cleared and a
    /// longer prefix is cut to the address's width. An IPv4-mapped IPv6 network of 96 bits or more
    /// becomes the IPv4 network that it stands for.
    pub fn new(address: IpAddr, prefix: u8) -> Self {
        let (address, prefix) = match address {
            IpAddr::V6(v6) if prefix >= 96 => match v6.to_ipv4_mapped() {
                Some(v4) => (IpAddr::V4(v4), prefix - 96),
                None => (address, prefix),
            },
            _ => (address, prefix),
        };
        match address {
            IpAddr::V4(v4) => {
                let prefix = prefix.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self {
                    address: IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask)),
                    prefix,
                }
            }
            IpAddr::V6(v6) => {
                let prefix = prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self {
                    address: IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask)),
                    prefix,
                }
            }
        }
    }

    /// The network that holds just this address.
    pub fn host(address: IpAddr) -> Self {
        Self::new(address, if address.is_ipv4() { 32 } else { 128 })
    }

    /// Its first address.
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// The number of leading bits that count: 0 to 32, or to 128.
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` lies in it. An IPv4-mapped IPv6 address counts as the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        Self::new(address.to_canonical(), self.prefix) == *self
            && address.to_canonical().is_ipv4() == self.address.is_ipv4()
    }

    /// Whether every address of `other` lies in it.
    pub fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The address at `index` from its first one, if it lies in it.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        let address = match self.address {
            IpAddr::V4(v4) => {
                let index = u32::try_from(index).ok()?;
                IpAddr::V4(Ipv4Addr::from(u32::from(v4).checked_add(index)?))
            }
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).checked_add(index)?)),
        };
        self.contains(address).then_some(address)
    }

    /// The network of twice the size that holds it, unless it is everything already.
    pub fn parent(&self) -> Option<Self> {
        Some(Self::new(self.address, self.prefix.checked_sub(1)?))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;

    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(network: Cidr) -> Self {
        network.to_string()
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax(text.to_owned());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse::<u8>().ok().filter(|prefix| *prefix <= width)
            }
            Some(_) => return Err(syntax()),
            None => Some(width),
        }
        .ok_or_else(|| CidrError::Prefix(text.to_owned(), width))?;
        let network = Self::new(address, prefix);
        if network.address != address.to_canonical() && network.address != address {
            return Err(CidrError::HostBits(text.to_owned(), network));
        }
        Ok(network)
    }
}

/// What kind of place an address is, as far as policy is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AddressScope {
    /// The public Internet.
    Global,
    /// Private and shared ranges (RFC 1918, RFC 6598, RFC 4193), benchmark and protocol ranges.
    Private,
    /// Link-local ranges (169.254.0.0/16, fe80::/10).
    LinkLocal,
    /// Where cloud providers serve credentials to their machines.
    Metadata,
    /// Loopback, unspecified, multicast, broadcast and reserved ranges: no destination for a
    /// guest's traffic, whatever a rule says.
    Martian,
}

impl AddressScope {
    /// The kind of `address`; an IPv4 address in IPv6 clothes (mapped, translated by NAT64, 6to4)
    /// is judged by the IPv4 address.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        match (a, b, c, d) {
            // EC2, GCE, Azure, OpenStack; Alibaba; Oracle; Azure's wire server.
            (169, 254, 169, 254) | (100, 100, 100, 200) | (192, 0, 0, 192) => Self::Metadata,
            (169, 254, 170, 2 | 23) | (168, 63, 129, 16) => Self::Metadata,
            (0 | 127 | 224..=255, ..) => Self::Martian,
            (169, 254, ..) => Self::LinkLocal,
            (10, ..) | (172, 16..=31, ..) | (192, 168, ..) | (100, 64..=127, ..) => Self::Private,
            (192, 0, 0 | 2, _) | (198, 18 | 19, ..) | (198, 51, 100, _) | (203, 0, 113, _) => {
                Self::Private
            }
            _ => Self::Global,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let segments = address.segments();
        let [a, b, c, _, _, _, g, h] = segments;
        let v4 = |high: u16, low: u16| {
            Self::of_v4(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)))
        };
        match segments {
            [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] => Self::Metadata,
            [0x0064, 0xff9b, 0, 0, 0, 0, ..] => v4(g, h),
            [0x2002, ..] => v4(b, c),
            // IPv4-compatible addresses, `::` and `::1` among them, and IPv4-translated ones.
            [0, 0, 0, 0, 0, 0, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Self::Martian,
            _ if a & 0xff00 == 0xff00 => Self::Martian,
            _ if a & 0xffc0 == 0xfe80 => Self::LinkLocal,
            _ if a & 0xfe00 == 0xfc00 || a & 0xffc0 == 0xfec0 => Self::Private,
            // Local-use NAT64, documentation, discard-only.
            [0x0064, 0xff9b, 1, ..] | [0x2001, 0x0db8, ..] | [0x0100, 0, 0, 0, ..] => Self::Private,
            _ => Self::Global,
        }
    }

    /// Whether traffic there is denied unless a rule names the range.
    pub const fn must_be_named(self) -> bool {
        !matches!(self, Self::Global)
    }
}

impl fmt::Display for AddressScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "global",
            Self::Private => "private",
            Self::LinkLocal => "link-local",
            Self::Metadata => "cloud metadata",
            Self::Martian => "unroutable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidr_parses_shows_and_refuses() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "192.0.2.7/32",
            "2001:db8::/32",
            "::/0",
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), text);
        }
        assert_eq!("192.0.2.7".parse::<Cidr>().unwrap().prefix(), 32);
        for text in [
            "",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0/8",
            "::/129",
            "::1/64",
            "a/8",
            "10.0.0.0/+8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn cidr_contains_mapped_addresses_of_its_own() {
        let net: Cidr = "10.0.0.0/8".parse().unwrap();
        assert!(net.contains("10.255.0.1".parse().unwrap()));
        assert!(net.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!net.contains("11.0.0.0".parse().unwrap()));
        assert!(
            !"0.0.0.0/0"
                .parse::<Cidr>()
                .unwrap()
                .contains("::1".parse().unwrap())
        );
        assert!(
            !"::/0"
                .parse::<Cidr>()
                .unwrap()
                .contains("1.2.3.4".parse().unwrap())
        );
        assert_eq!("::ffff:10.0.0.0/104".parse::<Cidr>().unwrap(), net);
    }

    #[test]
    fn scope_sees_through_ipv6_clothes() {
        let scope = |text: &str| AddressScope::of(text.parse().unwrap());
        assert_eq!(scope("8.8.8.8"), AddressScope::Global);
        assert_eq!(scope("::ffff:10.0.0.1"), AddressScope::Private);
        assert_eq!(scope("64:ff9b::a9fe:a9fe"), AddressScope::Metadata);
        assert_eq!(scope("2002:a00:1::"), AddressScope::Private);
        assert_eq!(scope("::1"), AddressScope::Martian);
        assert_eq!(scope("127.8.8.8"), AddressScope::Martian);
        assert_eq!(scope("fe80::1"), AddressScope::LinkLocal);
        assert_eq!(scope("fd12::1"), AddressScope::Private);
        assert_eq!(scope("2606:4700::1111"), AddressScope::Global);
        assert_eq!(scope("169.254.169.254"), AddressScope::Metadata);
    }
}
