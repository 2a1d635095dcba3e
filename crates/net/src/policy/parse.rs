//! The text form of rules, `[PROTOCOL:]TARGET[:PORTS]`.

use std::fmt;

use super::{Action, Direction, DomainPatternError, PortRange, Protocol, Rule, Target};
use crate::CidrError;

/// Why a text is not a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleSyntaxError {
    /// The target is no domain name.
    #[error(transparent)]
    Domain(#[from] DomainPatternError),
    /// The target is no network.
    #[error(transparent)]
    Network(#[from] CidrError),
    /// A port list that is none.
    #[error("{0:?} is not a list of ports: write ports from 1 to 65535 like 80,443,8000-8080")]
    Ports(String),
    /// Ports for a protocol without them.
    #[error("{0:?}: ICMP has no ports; leave them out")]
    IcmpPorts(String),
    /// A bracket without its partner.
    #[error("{0:?}: write an IPv6 target with ports like [2001:db8::/32]:443")]
    Bracket(String),
}

pub(super) fn rule(action: Action, text: &str) -> Result<Rule, RuleSyntaxError> {
    let (protocol, rest) = match text.split_once(':') {
        Some(("tcp", rest)) => (Protocol::Tcp, rest),
        Some(("udp", rest)) => (Protocol::Udp, rest),
        Some(("icmp", rest)) => (Protocol::Icmp, rest),
        _ => (Protocol::Any, text),
    };
    let (target, ports) = split_ports(rest, text)?;
    let ports = match ports {
        Some(_) if protocol == Protocol::Icmp => {
            return Err(RuleSyntaxError::IcmpPorts(text.to_owned()));
        }
        Some(list) => list
            .split(',')
            .map(|range| port_range(range).ok_or_else(|| RuleSyntaxError::Ports(list.to_owned())))
            .collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    Ok(Rule {
        name: None,
        action,
        direction: Direction::Out,
        protocol,
        target: self::target(target)?,
        ports,
    })
}

fn split_ports<'a>(
    rest: &'a str,
    text: &str,
) -> Result<(&'a str, Option<&'a str>), RuleSyntaxError> {
    if let Some(inner) = rest.strip_prefix('[') {
        let bracket = || RuleSyntaxError::Bracket(text.to_owned());
        let (target, after) = inner.split_once(']').ok_or_else(bracket)?;
        return match after.strip_prefix(':') {
            Some(ports) => Ok((target, Some(ports))),
            None if after.is_empty() => Ok((target, None)),
            None => Err(bracket()),
        };
    }
    // More than one colon and no bracket: an IPv6 address without ports.
    match rest.split_once(':') {
        Some((target, ports)) if !ports.contains(':') => Ok((target, Some(ports))),
        _ => Ok((rest, None)),
    }
}

fn target(text: &str) -> Result<Target, RuleSyntaxError> {
    match text {
        "any" => return Ok(Target::Any),
        "host" => return Ok(Target::Host),
        _ => {}
    }
    // No top-level domain is a number, so what ends in one was meant as an address.
    let last = text.rsplit('.').next().unwrap_or_default();
    let numeric = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    if text.contains('/') || text.contains(':') || numeric {
        Ok(Target::Network(text.parse()?))
    } else {
        Ok(Target::Domain(text.parse()?))
    }
}

fn port_range(text: &str) -> Option<PortRange> {
    let port = |digits: &str| {
        digits
            .bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| digits.parse::<u16>().ok().filter(|port| *port != 0))
            .flatten()
    };
    let range = match text.split_once('-') {
        Some((first, last)) => PortRange {
            first: port(first)?,
            last: port(last)?,
        },
        None => PortRange::one(port(text)?),
    };
    (range.first <= range.last).then_some(range)
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "any",
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Host => f.write_str("host"),
            Self::Domain(pattern) => pattern.fmt(f),
            Self::Network(network) => {
                let width = if network.address().is_ipv4() { 32 } else { 128 };
                if network.prefix() == width {
                    network.address().fmt(f)
                } else {
                    network.fmt(f)
                }
            }
        }
    }
}

/// The rule's text form, which [`Rule::allow`] and [`Rule::deny`] read, behind its action.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.action, self.direction) {
            (Action::Allow, Direction::Out) => "allow ",
            (Action::Deny, Direction::Out) => "deny ",
            (Action::Allow, Direction::In) => "allow from ",
            (Action::Deny, Direction::In) => "deny from ",
        })?;
        self.fmt_text(f)
    }
}

impl Rule {
    /// The rule's text form without its action.
    pub fn text(&self) -> String {
        struct Text<'a>(&'a Rule);
        impl fmt::Display for Text<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt_text(f)
            }
        }
        Text(self).to_string()
    }

    fn fmt_text(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol != Protocol::Any {
            write!(f, "{}:", self.protocol)?;
        }
        let target = self.target.to_string();
        if target.contains(':') && (!self.ports.is_empty() || self.protocol != Protocol::Any) {
            write!(f, "[{target}]")?;
        } else {
            f.write_str(&target)?;
        }
        for (index, range) in self.ports.iter().enumerate() {
            write!(f, "{}{range}", if index == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_texts_are_read_and_shown_alike() {
        for text in [
            "example.com",
            "*.example.com:443",
            "tcp:10.0.0.0/8:80,8000-8080",
            "udp:[2001:db8::/32]:53",
            "2001:db8::1",
            "[2001:db8::1]:443",
            "icmp:any",
            "host:5432",
            "0.0.0.0/0",
        ] {
            assert_eq!(Rule::allow(text).unwrap().text(), text);
        }
    }

    #[test]
    fn bad_rule_texts_are_typed_errors() {
        use RuleSyntaxError as E;
        let error = |text: &str| Rule::deny(text).unwrap_err();
        assert!(matches!(error("example.com:0"), E::Ports(_)));
        assert!(matches!(error("example.com:90-80"), E::Ports(_)));
        assert!(matches!(error("example.com:65536"), E::Ports(_)));
        assert!(matches!(error("example.com:"), E::Ports(_)));
        assert!(matches!(error("icmp:any:3"), E::IcmpPorts(_)));
        assert!(matches!(
            error("a.*.com"),
            E::Domain(DomainPatternError::Wildcard(_))
        ));
        assert!(matches!(
            error("10.0.0.1/8"),
            E::Network(CidrError::HostBits(..))
        ));
        assert!(matches!(
            error("10.0.0.256"),
            E::Network(CidrError::Syntax(_))
        ));
        assert!(matches!(error("[::1"), E::Bracket(_)));
    }
}
