//! What is wrong with a policy before it is used.

use super::{Action, Direction, Policy, PortRange, Protocol, Rule, Target};
use crate::Cidr;

/// The most rules in one policy: every new flow looks at each of them.
const MAX_RULES: usize = 10_000;

/// Why a policy cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A range has port 0, or ends before it begins.
    #[error(
        "rule {index} ({rule}): ports {first} to {last}: write ports from 1 to 65535, the lower first"
    )]
    Ports {
        /// The rule's place, from 0.
        index: usize,
        /// The rule.
        rule: String,
        /// The range's first port.
        first: u16,
        /// The range's last port.
        last: u16,
    },
    /// Ports in a rule about ICMP.
    #[error("rule {index} ({rule}): ICMP has no ports; leave them out")]
    IcmpPorts {
        /// The rule's place, from 0.
        index: usize,
        /// The rule.
        rule: String,
    },
    /// A rule for incoming flows that names a domain or the host as the client.
    #[error("rule {index} ({rule}): a client is known by its address only; name a network")]
    IncomingTarget {
        /// The rule's place, from 0.
        index: usize,
        /// The rule.
        rule: String,
    },
    /// Too many rules.
    #[error("the policy has {0} rules, and at most {MAX_RULES} are possible: join some of them")]
    TooMany(usize),
}

/// What is odd about a policy that can be used all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyWarning {
    /// A rule can never decide.
    #[error(
        "rule {index} ({rule}) never decides: rule {by_index} ({by}) before it matches all that it does; remove it or move it up"
    )]
    Unreachable {
        /// The rule's place, from 0.
        index: usize,
        /// The rule.
        rule: String,
        /// The place of the rule that hides it.
        by_index: usize,
        /// The rule that hides it.
        by: String,
    },
}

impl Policy {
    /// Looks for mistakes.
    ///
    /// # Errors
    /// The first thing that makes the policy unusable.
    pub fn check(&self) -> Result<Vec<PolicyWarning>, PolicyError> {
        if self.rules.len() > MAX_RULES {
            return Err(PolicyError::TooMany(self.rules.len()));
        }
        for (index, rule) in self.rules.iter().enumerate() {
            check_rule(index, rule)?;
        }
        let mut warnings = Vec::new();
        // Quadratic, so only for policies that people write; a generated list is its maker's.
        for (index, rule) in self.rules.iter().enumerate().take(1000) {
            let hider = self.rules.iter().take(index).position(|by| hides(by, rule));
            if let Some((by_index, by)) = hider.and_then(|i| Some((i, self.rules.get(i)?))) {
                warnings.push(PolicyWarning::Unreachable {
                    index,
                    rule: label(rule),
                    by_index,
                    by: label(by),
                });
            }
        }
        Ok(warnings)
    }
}

/// What logs and messages call the rule.
pub(super) fn label(rule: &Rule) -> String {
    rule.name.clone().unwrap_or_else(|| rule.to_string())
}

fn check_rule(index: usize, rule: &Rule) -> Result<(), PolicyError> {
    let name = || label(rule);
    for PortRange { first, last } in rule.ports.iter().copied() {
        if first == 0 || last < first {
            return Err(PolicyError::Ports {
                index,
                rule: name(),
                first,
                last,
            });
        }
    }
    if rule.protocol == Protocol::Icmp && !rule.ports.is_empty() {
        return Err(PolicyError::IcmpPorts {
            index,
            rule: name(),
        });
    }
    let by_name = matches!(rule.target, Target::Domain(_) | Target::Host);
    if rule.direction == Direction::In && by_name {
        return Err(PolicyError::IncomingTarget {
            index,
            rule: name(),
        });
    }
    Ok(())
}

/// Whether every flow that `rule` matches is matched by `by`.
fn hides(by: &Rule, rule: &Rule) -> bool {
    by.direction == rule.direction
        && (by.protocol == rule.protocol || by.protocol == Protocol::Any && !quic_gap(by, rule))
        && !dns_gap(by, rule)
        && hides_ports(&by.ports, &rule.ports)
        && hides_target(by, rule)
}

/// A domain rule without ports leaves DNS to those behind it.
fn dns_gap(by: &Rule, rule: &Rule) -> bool {
    matches!(by.target, Target::Domain(_))
        && by.action == Action::Allow
        && by.ports.is_empty()
        && rule.ports.iter().any(|range| range.contains(53))
}

/// A domain rule without a protocol leaves QUIC to those behind it.
fn quic_gap(by: &Rule, rule: &Rule) -> bool {
    matches!(by.target, Target::Domain(_))
        && by.action == Action::Allow
        && rule.protocol == Protocol::Udp
}

fn hides_ports(by: &[PortRange], ports: &[PortRange]) -> bool {
    let all = [PortRange {
        first: 1,
        last: u16::MAX,
    }];
    by.is_empty()
        || (if ports.is_empty() { &all[..] } else { ports })
            .iter()
            .all(|inner| {
                by.iter()
                    .any(|outer| outer.first <= inner.first && inner.last <= outer.last)
            })
}

fn hides_target(by: &Rule, rule: &Rule) -> bool {
    match (&by.target, &rule.target) {
        (Target::Any, _) if by.action == Action::Deny || by.direction == Direction::In => true,
        // An allowing `any` is for the public Internet: what must be named passes it by.
        (Target::Any, Target::Any) => rule.action == Action::Allow,
        (Target::Any, Target::Domain(_)) => rule.action == Action::Allow,
        (Target::Any, Target::Network(inner)) => super::decide::public(inner),
        (Target::Network(outer), Target::Network(inner)) => {
            outer.covers(inner) && (by.action == Action::Deny || names_alike(outer, inner))
        }
        (Target::Domain(outer), Target::Domain(inner)) => outer.covers(inner),
        (Target::Host, Target::Host) => true,
        _ => false,
    }
}

fn names_alike(outer: &Cidr, inner: &Cidr) -> bool {
    super::decide::public(inner) || super::decide::names_all_of(outer, inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(rules: Vec<Rule>) -> Policy {
        Policy {
            rules,
            ..Policy::deny_all()
        }
    }

    #[test]
    fn hidden_rule_is_warned_of_by_name() {
        let warnings = policy(vec![
            Rule::deny("*.example.com").unwrap().named("no examples"),
            Rule::allow("tcp:www.example.com:443").unwrap(),
        ])
        .check()
        .unwrap();
        assert_eq!(warnings.len(), 1);
        let text = warnings[0].to_string();
        assert!(text.contains("allow tcp:www.example.com:443"), "{text}");
        assert!(text.contains("no examples"), "{text}");
    }

    #[test]
    fn rules_that_can_still_decide_are_not_warned_of() {
        let rule = |text: &str| Rule::allow(text).unwrap();
        for (first, second) in [
            ("any", "10.0.0.0/8"),
            ("any", "host:80"),
            ("10.0.0.0/8", "0.0.0.0/0"),
            ("tcp:any", "udp:any"),
            ("any:80", "any:80-81"),
            ("example.com", "example.com:53"),
            ("example.com", "udp:example.com:443"),
            ("100.64.0.0/10", "100.100.100.200"),
        ] {
            let warnings = policy(vec![rule(first), rule(second)]).check().unwrap();
            assert_eq!(warnings, [], "{first} then {second}");
        }
    }

    #[test]
    fn port_zero_and_turned_ranges_are_errors() {
        for (first, last) in [(0, 5), (0, 0), (9, 8)] {
            let mut rule = Rule::allow("any").unwrap();
            rule.ports.push(PortRange { first, last });
            assert!(matches!(
                policy(vec![rule]).check(),
                Err(PolicyError::Ports { .. })
            ));
        }
    }
}
