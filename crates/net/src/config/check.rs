//! What is wrong with a network before it is started.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use capsa_core::MacAddress;

use super::{
    Forward, ForwardProtocol, GuestConfig, GuestName, LinkConditions, Listen, MAX_MTU,
    NetworkConfig, Resolver,
};
use crate::policy::{PolicyError, PolicyWarning};
use crate::{AddressScope, Cidr};

/// The most guests on one network.
const MAX_GUESTS: usize = 1000;

/// Why a network cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A guest's name is no DNS label, or one that means something else.
    #[error(
        "{0:?} cannot be a guest's name: use 1 to 63 letters, digits and -, and none of host, gateway, localhost"
    )]
    GuestName(String),
    /// Two guests have one name.
    #[error("two guests are named {0}: give each a name of its own")]
    SameName(GuestName),
    /// Two guests have one hardware address.
    #[error("guests {0} and {1} have the hardware address {2}: give each its own")]
    SameMac(GuestName, GuestName, MacAddress),
    /// Two guests have one address.
    #[error("guests {0} and {1} have the address {2}: give each its own")]
    SameAddress(GuestName, GuestName, IpAddr),
    /// A guest's address lies outside its network, or is the network's own.
    #[error(
        "guest {guest}: {address} is not a free address in {network}: the first three and the last are taken"
    )]
    Address {
        /// The guest.
        guest: GuestName,
        /// Its address.
        address: IpAddr,
        /// The network.
        network: String,
    },
    /// The IPv4 network has too few or too many addresses, or is no IPv4 network.
    #[error("ipv4: {0}: use an IPv4 network from /8 to /29, such as 10.0.2.0/24")]
    Ipv4Network(Cidr),
    /// The IPv6 network is not a /64.
    #[error("ipv6: {0}: use an IPv6 network of 64 bits, such as fd00:1:2:3::/64")]
    Ipv6Network(Cidr),
    /// A network in a range where no guest can live.
    #[error(
        "{0}: loopback, multicast and reserved ranges cannot be a guest network; use a private one"
    )]
    NetworkRange(Cidr),
    /// Neither IPv4 nor IPv6.
    #[error("the network has neither ipv4 nor ipv6: give it one")]
    NoAddresses,
    /// Two networks have addresses in common.
    #[error("networks {0} and {1} overlap: {2} and {3}; choose another range for one of them")]
    Overlap(String, String, Cidr, Cidr),
    /// Every address is in use.
    #[error("{0} has no free address: use a larger network")]
    NetworkFull(Cidr),
    /// Too many guests.
    #[error("{0} guests on one network: at most {MAX_GUESTS} are possible")]
    TooManyGuests(usize),
    /// The MTU is out of range.
    #[error("mtu: {0}: use 1280 to {MAX_MTU} bytes")]
    Mtu(u16),
    /// A limit is out of range.
    #[error("limits: {0}: {1} is too small; use at least {2}")]
    Limit(&'static str, u64, u64),
    /// A forward leads to port 0.
    #[error("guest {0}: a forward leads to port 0: use 1 to 65535")]
    ForwardPort(GuestName),
    /// Two forwards come from one place.
    #[error(
        "guest {guest}: {listen} is forwarded already, to guest {other}: choose another port, or 0 for a free one"
    )]
    SameForward {
        /// The guest of the second one.
        guest: GuestName,
        /// The place.
        listen: String,
        /// The guest of the first one.
        other: GuestName,
    },
    /// A Unix socket for UDP.
    #[error("guest {0}: a Unix socket leads to a TCP port only")]
    UnixUdp(GuestName),
    /// A rate, latency or loss is out of range.
    #[error("guest {0}: link: {1}")]
    Link(GuestName, &'static str),
    /// A DNS server cannot be one.
    #[error("resolver: {0} cannot be a DNS server: give an address and a port that is not 0")]
    Resolver(SocketAddr),
    /// A guest's policy cannot be used.
    #[error("guest {0}: {1}")]
    Policy(GuestName, PolicyError),
}

/// What is odd about a network that can be made all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigWarning {
    /// Something about a policy.
    #[error("guest {0}: {1}")]
    Policy(GuestName, PolicyWarning),
    /// The guests' addresses are public ones, which the guests then cannot reach outside.
    #[error("{0} is not a private range: its real addresses are out of the guests' reach")]
    PublicRange(Cidr),
    /// Rules for a guest without a way out.
    #[error(
        "guest {0}: its rules have no effect on outgoing flows, because the network has no way out"
    )]
    RulesWithoutOutside(GuestName),
}

impl NetworkConfig {
    /// Looks for mistakes.
    ///
    /// # Errors
    /// The first thing that makes the network impossible.
    pub fn check(&self) -> Result<Vec<ConfigWarning>, ConfigError> {
        let mut warnings = self.check_ranges()?;
        if !(1280..=MAX_MTU).contains(&self.mtu) {
            return Err(ConfigError::Mtu(self.mtu));
        }
        self.check_limits()?;
        if let Resolver::Servers(servers) = &self.resolver {
            let bad =
                |s: &&SocketAddr| s.port() == 0 || s.ip().is_unspecified() || s.ip().is_multicast();
            if let Some(server) = servers.iter().find(bad) {
                return Err(ConfigError::Resolver(*server));
            }
        }
        if self.guests.len() > MAX_GUESTS {
            return Err(ConfigError::TooManyGuests(self.guests.len()));
        }
        for (index, guest) in self.guests.iter().enumerate() {
            let before = self.guests.get(..index).unwrap_or_default();
            warnings.extend(self.check_guest(guest, before)?);
        }
        self.check_unique()?;
        Ok(warnings)
    }

    fn check_ranges(&self) -> Result<Vec<ConfigWarning>, ConfigError> {
        if let Some(v4) = self.ipv4
            && !(v4.address().is_ipv4() && (8..=29).contains(&v4.prefix()))
        {
            return Err(ConfigError::Ipv4Network(v4));
        }
        if let Some(v6) = self.ipv6
            && !(v6.address().is_ipv6() && v6.prefix() == 64)
        {
            return Err(ConfigError::Ipv6Network(v6));
        }
        if self.ipv4.is_none() && self.ipv6.is_none() {
            return Err(ConfigError::NoAddresses);
        }
        let mut warnings = Vec::new();
        for network in [self.ipv4, self.ipv6].into_iter().flatten() {
            match AddressScope::of(network.address()) {
                AddressScope::Private => {}
                AddressScope::Global => warnings.push(ConfigWarning::PublicRange(network)),
                _ => return Err(ConfigError::NetworkRange(network)),
            }
        }
        Ok(warnings)
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        for (name, value, least) in [
            ("tcp_flows", u64::from(limits.tcp_flows), 1),
            ("tcp_pending", u64::from(limits.tcp_pending), 1),
            ("udp_flows", u64::from(limits.udp_flows), 1),
            ("tcp_buffers", limits.tcp_buffers, 1 << 20),
            ("frame_queue", u64::from(limits.frame_queue), 256 << 10),
        ] {
            if value < least {
                return Err(ConfigError::Limit(name, value, least));
            }
        }
        Ok(())
    }

    /// Checks one guest by itself, and its forwards beside those of `others`.
    pub(crate) fn check_guest(
        &self,
        guest: &GuestConfig,
        others: &[GuestConfig],
    ) -> Result<Vec<ConfigWarning>, ConfigError> {
        self.check_guest_addresses(guest)?;
        check_link(&guest.name, &guest.link)?;
        for (index, forward) in guest.forwards.iter().enumerate() {
            check_forward(&guest.name, forward)?;
            let own = guest.forwards.iter().take(index).map(|f| (&guest.name, f));
            let theirs = others
                .iter()
                .flat_map(|o| o.forwards.iter().map(|f| (&o.name, f)));
            let same = own.chain(theirs).find(|(_, other)| collide(forward, other));
            if let Some((other, _)) = same {
                return Err(ConfigError::SameForward {
                    guest: guest.name.clone(),
                    listen: forward.listen.to_string(),
                    other: other.clone(),
                });
            }
        }
        let warnings = guest
            .policy
            .check()
            .map_err(|error| ConfigError::Policy(guest.name.clone(), error))?;
        let mut warnings: Vec<_> = warnings
            .into_iter()
            .map(|warning| ConfigWarning::Policy(guest.name.clone(), warning))
            .collect();
        if !self.outside && !guest.policy.rules.is_empty() {
            warnings.push(ConfigWarning::RulesWithoutOutside(guest.name.clone()));
        }
        Ok(warnings)
    }

    fn check_guest_addresses(&self, guest: &GuestConfig) -> Result<(), ConfigError> {
        let network = |net: Option<Cidr>| {
            net.map_or_else(|| "a network without it".to_owned(), |n| n.to_string())
        };
        let error = |address, net| ConfigError::Address {
            guest: guest.name.clone(),
            address,
            network: network(net),
        };
        if let Some(v4) = guest.ipv4 {
            let base = self.ipv4.map(|net| net.address());
            let last = self
                .ipv4
                .and_then(|net| net.nth((1u128 << (32 - u32::from(net.prefix()))) - 1));
            let inside = self.ipv4.is_some_and(|net| net.contains(v4.into()));
            let own = [
                base,
                self.gateway4().map(Into::into),
                self.host4().map(Into::into),
                last,
            ];
            if !inside || own.contains(&Some(v4.into())) {
                return Err(error(v4.into(), self.ipv4));
            }
        }
        if let Some(v6) = guest.ipv6 {
            let inside = self.ipv6.is_some_and(|net| net.contains(v6.into()));
            let base = self.ipv6.map(|net| net.address());
            let own = [
                base,
                self.gateway6().map(Into::into),
                self.host6().map(Into::into),
            ];
            if !inside || own.contains(&Some(v6.into())) {
                return Err(error(v6.into(), self.ipv6));
            }
        }
        Ok(())
    }

    fn check_unique(&self) -> Result<(), ConfigError> {
        let mut names = HashMap::new();
        let mut macs = HashMap::new();
        let mut addresses: HashMap<IpAddr, &GuestName> = HashMap::new();
        for (guest, own) in self.guests.iter().zip(self.addresses()?) {
            if names.insert(&guest.name, ()).is_some() {
                return Err(ConfigError::SameName(guest.name.clone()));
            }
            if let Some(other) = macs.insert(own.mac, &guest.name) {
                return Err(ConfigError::SameMac(
                    other.clone(),
                    guest.name.clone(),
                    own.mac,
                ));
            }
            let v4 = own.ipv4.map(|v4: Ipv4Addr| IpAddr::V4(v4));
            for address in v4.into_iter().chain(own.ipv6.map(IpAddr::V6)) {
                if let Some(other) = addresses.insert(address, &guest.name) {
                    return Err(ConfigError::SameAddress(
                        other.clone(),
                        guest.name.clone(),
                        address,
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether two networks have addresses in common, as an error that names both.
///
/// # Errors
/// [`ConfigError::Overlap`] when they do.
pub fn overlapping(a: &NetworkConfig, b: &NetworkConfig) -> Result<(), ConfigError> {
    for (ours, theirs) in [(a.ipv4, b.ipv4), (a.ipv6, b.ipv6)] {
        if let (Some(ours), Some(theirs)) = (ours, theirs)
            && ours.overlaps(&theirs)
        {
            return Err(ConfigError::Overlap(
                a.name.clone(),
                b.name.clone(),
                ours,
                theirs,
            ));
        }
    }
    Ok(())
}

pub(crate) fn check_link(guest: &GuestName, link: &LinkConditions) -> Result<(), ConfigError> {
    let error = |what| Err(ConfigError::Link(guest.clone(), what));
    if [link.upload, link.download]
        .into_iter()
        .flatten()
        .any(|rate| rate < 1000)
    {
        return error("a rate below 1,000 bytes a second; use a partition to stop everything");
    }
    if link.latency > Duration::from_secs(60) {
        return error("a latency above a minute; use at most 60 s");
    }
    if link.loss_ppm > 1_000_000 {
        return error("a loss above a million in a million; use 0 to 1,000,000");
    }
    Ok(())
}

pub(crate) fn check_forward(guest: &GuestName, forward: &Forward) -> Result<(), ConfigError> {
    if forward.guest_port == 0 {
        return Err(ConfigError::ForwardPort(guest.clone()));
    }
    if matches!(forward.listen, Listen::Unix(_)) && forward.protocol == ForwardProtocol::Udp {
        return Err(ConfigError::UnixUdp(guest.clone()));
    }
    Ok(())
}

fn collide(a: &Forward, b: &Forward) -> bool {
    let free_port = matches!(&a.listen, Listen::Address(address) if address.port() == 0);
    a.protocol == b.protocol && a.listen == b.listen && !free_port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkConfig {
        NetworkConfig::new("test")
            .guest(GuestConfig::new("a".parse().unwrap()))
            .guest(GuestConfig::new("b".parse().unwrap()))
    }

    #[test]
    fn addresses_are_stable_and_distinct() {
        let network = network();
        assert_eq!(network.check().unwrap(), []);
        let addresses = network.addresses().unwrap();
        assert_eq!(addresses, network.addresses().unwrap());
        assert_eq!(addresses[0].ipv4.unwrap().to_string(), "10.0.2.3");
        assert_eq!(addresses[1].ipv4.unwrap().to_string(), "10.0.2.4");
        assert_ne!(addresses[0].mac, addresses[1].mac);
        assert_ne!(addresses[0].ipv6, addresses[1].ipv6);
        assert_eq!(addresses[0].mac.0[0] & 3, 2, "local and for one interface");
    }

    #[test]
    fn mistakes_are_typed_errors() {
        let refused = |change: &dyn Fn(&mut NetworkConfig)| {
            let mut network = network();
            change(&mut network);
            network.check().unwrap_err()
        };
        use ConfigError as E;
        assert!(matches!(refused(&|n| n.mtu = 1279), E::Mtu(1279)));
        assert!(matches!(
            refused(&|n| n.ipv4 = "10.0.0.0/30".parse().ok()),
            E::Ipv4Network(_)
        ));
        assert!(matches!(
            refused(&|n| n.ipv4 = "127.0.0.0/8".parse().ok()),
            E::NetworkRange(_)
        ));
        assert!(matches!(
            refused(&|n| n.ipv6 = "fd00::/48".parse().ok()),
            E::Ipv6Network(_)
        ));
        assert!(matches!(
            refused(&|n| (n.ipv4, n.ipv6) = (None, None)),
            E::NoAddresses
        ));
        assert!(matches!(
            refused(&|n| n.guests[1].name = n.guests[0].name.clone()),
            E::SameName(_) | E::SameMac(..)
        ));
        assert!(matches!(
            refused(&|n| n.guests[1].ipv4 = "10.0.2.1".parse().ok()),
            E::Address { .. }
        ));
        assert!(matches!(
            refused(&|n| n.guests[1].ipv4 = "10.0.3.9".parse().ok()),
            E::Address { .. }
        ));
        assert!(matches!(
            refused(&|n| n.guests[0].forwards = vec![Forward::tcp(80, 0)]),
            E::ForwardPort(_)
        ));
        let twice = |n: &mut NetworkConfig| {
            n.guests[0].forwards = vec![Forward::tcp(8080, 80)];
            n.guests[1].forwards = vec![Forward::tcp(8080, 81)];
        };
        assert!(matches!(refused(&twice), E::SameForward { .. }));
        assert!(matches!(
            refused(&|n| n.guests[0].link.upload = Some(1)),
            E::Link(..)
        ));
        assert!(matches!(
            refused(&|n| n.limits.tcp_buffers = 1),
            E::Limit(..)
        ));
        let fixed = |n: &mut NetworkConfig| {
            n.guests[0].ipv4 = "10.0.2.9".parse().ok();
            n.guests[1].ipv4 = "10.0.2.9".parse().ok();
        };
        assert!(matches!(refused(&fixed), E::SameAddress(..)));
    }

    #[test]
    fn overlapping_networks_are_named() {
        let error =
            overlapping(&NetworkConfig::new("one"), &NetworkConfig::new("two")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("one and two overlap: 10.0.2.0/24"),
            "{error}"
        );
    }

    #[test]
    fn full_network_is_an_error() {
        let mut network = NetworkConfig::new("small");
        network.ipv4 = "10.0.2.0/29".parse().ok();
        for index in 0..5 {
            network
                .guests
                .push(GuestConfig::new(format!("g{index}").parse().unwrap()));
        }
        assert!(matches!(network.check(), Err(ConfigError::NetworkFull(_))));
    }
}
