//! Learn mode: what was seen, and the smallest allow-list that covers it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Action, Attempt, Direction, DomainPattern, Policy, PortRange, Protocol, Rule, Target};
use crate::Cidr;

/// The most distinct things that are remembered; a guest must not fill the host's memory.
const MAX_SEEN: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Tcp,
    Udp,
    Icmp,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Host,
    Name(String),
    Address(IpAddr),
}

/// What a guest's flows and lookups were while its policy only watched.
#[derive(Clone, Debug, Default)]
pub struct LearnedFlows {
    seen: BTreeSet<(Place, Kind, u16)>,
    looked_up: BTreeSet<String>,
    incomplete: bool,
}

impl LearnedFlows {
    /// Remembers an outgoing flow; others are no matter of an allow-list.
    pub fn flow(&mut self, attempt: &Attempt<'_>) {
        let kind = match attempt.protocol {
            Protocol::Tcp => Kind::Tcp,
            Protocol::Udp => Kind::Udp,
            Protocol::Icmp => Kind::Icmp,
            Protocol::Any => return,
        };
        if attempt.direction != Direction::Out {
            return;
        }
        // A domain rule cannot name a private address, so there the address itself has to.
        let special = crate::AddressScope::of(attempt.address).must_be_named();
        let place = match attempt.names.first() {
            _ if attempt.to_host => Place::Host,
            Some(name) if !special && !attempt.host_address => Place::Name(name.clone()),
            _ => Place::Address(attempt.address.to_canonical()),
        };
        if self.has_room() {
            self.seen.insert((place, kind, attempt.port));
        }
    }

    /// Remembers a lookup that had an answer.
    pub fn lookup(&mut self, name: &str) {
        if self.has_room() {
            self.looked_up.insert(name.to_owned());
        }
    }

    fn has_room(&mut self) -> bool {
        let room = self.seen.len() + self.looked_up.len() < MAX_SEEN;
        self.incomplete |= !room;
        room
    }

    /// Whether more was seen than could be remembered.
    pub const fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The fewest rules that allow what was seen and nothing else, in a deny-by-default policy.
    /// Flows to one place become one rule with their ports; addresses that fill a whole network
    /// become that network; a name that was only looked up becomes a rule for ICMP, so that it
    /// resolves and nothing more.
    pub fn allow_list(&self) -> Policy {
        let mut ports: BTreeMap<(Place, Kind), BTreeSet<u16>> = BTreeMap::new();
        for (place, kind, port) in &self.seen {
            ports
                .entry((place.clone(), *kind))
                .or_default()
                .insert(*port);
        }
        let named: BTreeSet<&str> = self
            .seen
            .iter()
            .filter_map(|(place, ..)| match place {
                Place::Name(name) => Some(name.as_str()),
                _ => None,
            })
            .collect();
        let only_looked_up = self
            .looked_up
            .iter()
            .filter(|name| !named.contains(name.as_str()))
            .filter_map(|name| {
                let target = Target::Domain(DomainPattern::exact(name).ok()?);
                Some(rule(Kind::Icmp, target, Vec::new()))
            });
        let mut rules = Vec::new();
        let mut networks: BTreeMap<(Kind, Vec<PortRange>), Vec<Cidr>> = BTreeMap::new();
        for ((place, kind), ports) in ports {
            let ports = if kind == Kind::Icmp {
                Vec::new()
            } else {
                ranges(&ports)
            };
            let target = match place {
                Place::Host => Target::Host,
                Place::Name(name) => match DomainPattern::exact(&name) {
                    Ok(pattern) => Target::Domain(pattern),
                    Err(_) => continue,
                },
                Place::Address(address) => {
                    networks
                        .entry((kind, ports))
                        .or_default()
                        .push(Cidr::host(address));
                    continue;
                }
            };
            rules.push(rule(kind, target, ports));
        }
        for ((kind, ports), networks) in networks {
            for network in aggregate(networks) {
                rules.push(rule(kind, Target::Network(network), ports.clone()));
            }
        }
        rules.extend(only_looked_up);
        Policy {
            rules,
            ..Policy::deny_all()
        }
    }
}

fn rule(kind: Kind, target: Target, ports: Vec<PortRange>) -> Rule {
    Rule {
        name: None,
        action: Action::Allow,
        direction: Direction::Out,
        protocol: match kind {
            Kind::Tcp => Protocol::Tcp,
            Kind::Udp => Protocol::Udp,
            Kind::Icmp => Protocol::Icmp,
        },
        target,
        ports,
    }
}

fn ranges(ports: &BTreeSet<u16>) -> Vec<PortRange> {
    let mut ranges: Vec<PortRange> = Vec::new();
    for port in ports.iter().copied().filter(|port| *port != 0) {
        match ranges.last_mut() {
            Some(range) if range.last.checked_add(1) == Some(port) => range.last = port,
            _ => ranges.push(PortRange::one(port)),
        }
    }
    ranges
}

/// Joins neighbours that fill the next larger network, as long as there are any.
fn aggregate(networks: Vec<Cidr>) -> BTreeSet<Cidr> {
    let mut networks: BTreeSet<Cidr> = networks.into_iter().collect();
    let mut longest_first: Vec<Cidr> = networks.iter().copied().collect();
    while let Some(network) = longest_first.pop() {
        let Some(parent) = network.parent() else {
            continue;
        };
        let twin = match parent.address() == network.address() {
            true => twin_of(&network),
            false => Some(Cidr::new(parent.address(), network.prefix())),
        };
        let Some(twin) = twin else { continue };
        if networks.contains(&network) && networks.remove(&twin) {
            networks.remove(&network);
            networks.insert(parent);
            longest_first.push(parent);
        }
    }
    networks
}

/// The network of the same size behind `network`.
fn twin_of(network: &Cidr) -> Option<Cidr> {
    let bit = match network.address() {
        IpAddr::V4(_) => 1u128.checked_shl(u32::from(32u8.checked_sub(network.prefix())?))?,
        IpAddr::V6(_) => 1u128.checked_shl(u32::from(128u8.checked_sub(network.prefix())?))?,
    };
    let parent = network.parent()?;
    Some(Cidr::new(parent.nth(bit)?, network.prefix()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt<'a>(
        address: &str,
        protocol: Protocol,
        port: u16,
        names: &'a [String],
    ) -> Attempt<'a> {
        Attempt {
            direction: Direction::Out,
            protocol,
            address: address.parse().unwrap(),
            port,
            names,
            host_address: false,
            to_host: false,
        }
    }

    #[test]
    fn allow_list_is_small_covers_all_and_no_more() {
        let mut learned = LearnedFlows::default();
        let names = ["example.com".to_owned()];
        for address in ["93.184.215.14", "93.184.215.15"] {
            for port in [80, 443] {
                learned.flow(&attempt(address, Protocol::Tcp, port, &names));
            }
        }
        for address in ["10.1.0.0", "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.9"] {
            learned.flow(&attempt(address, Protocol::Udp, 5000, &[]));
            learned.flow(&attempt(address, Protocol::Udp, 5001, &[]));
        }
        learned.lookup("example.com");
        learned.lookup("only.example.org");

        let policy = learned.allow_list();

        let texts: Vec<String> = policy.rules.iter().map(Rule::text).collect();
        assert_eq!(
            texts,
            [
                "tcp:example.com:80,443",
                "udp:10.1.0.0/30:5000-5001",
                "udp:10.1.0.9:5000-5001",
                "icmp:only.example.org",
            ]
        );
        let allows = |a: &Attempt<'_>| policy.decide(a).action == Action::Allow;
        assert!(allows(&attempt("10.1.0.2", Protocol::Udp, 5001, &[])));
        assert!(!allows(&attempt("10.1.0.4", Protocol::Udp, 5001, &[])));
        assert!(!allows(&attempt("93.184.215.14", Protocol::Tcp, 80, &[])));
        assert_eq!(policy.check().unwrap(), []);
    }
}
