//! What a guest may talk to: rules, their order, and what they decide.
//!
//! The first rule that matches a flow decides; where none does, the default does. Whatever the
//! default is, these are denied unless a rule names them: private, link-local and metadata
//! addresses (by a network within that range), the host's own addresses (by the very address)
//! and the host's loopback services (by the target `host`). Loopback, multicast and reserved
//! destinations are denied always.
//!
//! A domain rule that names no ports leaves out port 53, and one that names no protocol leaves out
//! QUIC (UDP port 443), where no server name can be seen.
//!
//! A domain rule holds for addresses which the network's own DNS gave this guest in an answer for
//! a name that matches, through aliases; a literal address never matches one. On TCP the name in a
//! TLS client hello or HTTP request, where there is one, has to be allowed as well.

mod check;
mod decide;
mod learn;
mod parse;
mod pattern;
#[cfg(unix)]
mod pins;
#[cfg(any(unix, test))]
mod sniff;

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use check::{PolicyError, PolicyWarning};
pub use decide::{Attempt, Verdict};
pub use learn::LearnedFlows;
pub use parse::RuleSyntaxError;
pub use pattern::{DomainPattern, DomainPatternError};
#[cfg(unix)]
pub(crate) use pins::Pins;
#[cfg(any(unix, test))]
pub(crate) use sniff::{MAX_LOOK, Sniffed, sniff};

use crate::{AddressScope, Cidr, GuestName};

/// What happens to a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// It may pass.
    Allow,
    /// It fails at once: TCP by a reset, everything else by an ICMP answer.
    Deny,
}

/// Who starts a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The guest, to the outside.
    Out,
    /// A client outside, through a port forward.
    In,
}

/// Which protocol a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Every one. A domain rule without a protocol does not hold for QUIC (UDP port 443), whose
    /// server name cannot be seen: the client falls back to TCP.
    Any,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP and ICMPv6 echo.
    Icmp,
}

/// Ports from `first` to `last`, both of them included; neither is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortRange {
    /// The first port, 1 to 65535.
    pub first: u16,
    /// The last port, `first` to 65535.
    pub last: u16,
}

impl PortRange {
    /// Just one port.
    pub const fn one(port: u16) -> Self {
        Self {
            first: port,
            last: port,
        }
    }

    /// Whether `port` is one of them.
    pub const fn contains(&self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Everything on the public Internet; for a rule that denies: everything.
    Any,
    /// A network, or one address.
    Network(Cidr),
    /// A domain name, or everything below one.
    Domain(DomainPattern),
    /// The host's loopback services, which the guest reaches as `host.capsa.internal`.
    Host,
}

/// One rule. It has a text form, `[PROTOCOL:]TARGET[:PORTS]`: `example.com`, `*.example.com:443`,
/// `tcp:10.0.0.0/8:80,8000-8080`, `udp:[2001:db8::/32]:53`, `icmp:any`, `host:5432`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// A name that logs and warnings use in place of the rule's text.
    pub name: Option<String>,
    /// What it does.
    pub action: Action,
    /// Which flows it is about by who starts them. For [`Direction::In`] the target is the client.
    pub direction: Direction,
    /// Which flows it is about by protocol.
    pub protocol: Protocol,
    /// Which flows it is about by the other end.
    pub target: Target,
    /// Which flows it is about by destination port; empty for all of them.
    pub ports: Vec<PortRange>,
}

impl Rule {
    /// Allows what `text` describes; see [`Rule`] for its form.
    ///
    /// # Errors
    /// Says what is wrong with the text and how to write it.
    pub fn allow(text: &str) -> Result<Self, RuleSyntaxError> {
        parse::rule(Action::Allow, text)
    }

    /// Denies what `text` describes; see [`Rule`] for its form.
    ///
    /// # Errors
    /// Says what is wrong with the text and how to write it.
    pub fn deny(text: &str) -> Result<Self, RuleSyntaxError> {
        parse::rule(Action::Deny, text)
    }

    /// The same rule under a name.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The same rule for flows which clients start through port forwards.
    #[must_use]
    pub const fn incoming(mut self) -> Self {
        self.direction = Direction::In;
        self
    }
}

/// The rules of one guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// In their order: the first that matches decides.
    pub rules: Vec<Rule>,
    /// What happens to flows from the guest that no rule matches.
    pub outgoing: Action,
    /// What happens to flows through port forwards that no rule matches.
    pub incoming: Action,
    /// Whether the policy only watches: flows that it denies pass all the same and are collected, so
    /// that the allow-list which they need can be asked for. Unroutable destinations stay denied.
    pub learn: bool,
}

impl Policy {
    /// Allows the public Internet; the default.
    pub const fn allow_all() -> Self {
        Self {
            rules: Vec::new(),
            outgoing: Action::Allow,
            incoming: Action::Allow,
            learn: false,
        }
    }

    /// Allows nothing but clients of port forwards.
    pub fn deny_all() -> Self {
        Self {
            outgoing: Action::Deny,
            ..Self::allow_all()
        }
    }

    /// Denies everything but what these texts describe, in the form of [`Rule`].
    ///
    /// # Errors
    /// Says what is wrong with the first text that is not a rule.
    pub fn allow_only<'a>(
        rules: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, RuleSyntaxError> {
        Ok(Self {
            rules: rules
                .into_iter()
                .map(Rule::allow)
                .collect::<Result<_, _>>()?,
            ..Self::deny_all()
        })
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::allow_all()
    }
}

/// Why a flow was allowed or denied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// A rule decided.
    Rule {
        /// Its place in the policy, from 0.
        index: usize,
        /// Its name, or its text.
        rule: String,
    },
    /// No rule matched, so the default decided.
    Default,
    /// The address is one that has to be named, and no rule does.
    NotNamed(AddressScope),
    /// The address is one of the host's own, and no rule names it.
    HostAddress,
    /// The name which the guest sent in its TLS hello or HTTP request is not allowed.
    ServerName(String),
    /// The guest's first bytes look like TLS or HTTP, and no server name could be read from them.
    UnreadableServerName,
    /// The network has no way out.
    NoWayOut,
    /// DNS to another server while domain rules are in force: only the network's own DNS is.
    ForeignDns,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { index, rule } => write!(f, "rule {index} ({rule})"),
            Self::Default => f.write_str("no rule matches"),
            Self::NotNamed(scope) => write!(f, "no rule names this {scope} address"),
            Self::HostAddress => f.write_str("no rule names this address of the host itself"),
            Self::ServerName(name) => write!(f, "the server name {name:?} is not allowed"),
            Self::UnreadableServerName => f.write_str("the server name cannot be read"),
            Self::NoWayOut => f.write_str("the network has no way out"),
            Self::ForeignDns => f.write_str("a DNS server other than the network's own"),
        }
    }
}

/// What was decided about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Subject {
    /// A flow.
    Flow {
        /// Who started it.
        direction: Direction,
        /// Its protocol.
        protocol: Protocol,
        /// The guest's end.
        guest: SocketAddr,
        /// The other end; the port of an ICMP echo is 0.
        remote: SocketAddr,
        /// The names under which the guest was told the remote address.
        names: Vec<String>,
    },
    /// A DNS query.
    Query {
        /// The name that was asked for.
        name: String,
        /// The record type, by number.
        record_type: u16,
    },
}

/// One decision of a guest's policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEvent {
    /// The guest.
    pub guest: GuestName,
    /// What was decided about.
    pub subject: Subject,
    /// What was decided.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// Whether it passed although it was denied, because the policy only watches.
    pub learned: bool,
}

impl fmt::Display for PolicyEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match (self.action, self.learned) {
            (Action::Allow, _) => "allowed",
            (Action::Deny, false) => "denied",
            (Action::Deny, true) => "would be denied",
        };
        write!(f, "{}: ", self.guest)?;
        match &self.subject {
            Subject::Flow {
                direction,
                protocol,
                guest,
                remote,
                names,
            } => {
                let (from, to) = match direction {
                    Direction::Out => (guest, remote),
                    Direction::In => (remote, guest),
                };
                write!(f, "{protocol} {from} to {to}")?;
                if !names.is_empty() {
                    write!(f, " ({})", names.join(", "))?;
                }
            }
            Subject::Query { name, record_type } => {
                write!(f, "lookup of {name} type {record_type}")?
            }
        }
        write!(f, " {verb}: {}", self.reason)
    }
}
