//! Which rule decides.

use std::net::IpAddr;

use super::{Action, Direction, Policy, Protocol, Reason, Rule, Target, check::label};
use crate::{AddressScope, Cidr};

/// A flow that somebody wants to start.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Who.
    pub direction: Direction,
    /// Its protocol.
    pub protocol: Protocol,
    /// The other end: the destination of an outgoing flow, the client of an incoming one.
    pub address: IpAddr,
    /// The destination port; 0 for ICMP.
    pub port: u16,
    /// The names under which the guest was told the address, in lower case.
    pub names: &'a [String],
    /// Whether the address is one of the host's own.
    pub host_address: bool,
    /// Whether it goes to the host's loopback services.
    pub to_host: bool,
}

/// What a policy decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What happens.
    pub action: Action,
    /// Why.
    pub reason: Reason,
    /// Whether the server name in the first bytes, if there is one, has to be allowed as well.
    pub check_name: bool,
}

/// Whether no address in `network` has to be named.
pub(super) fn public(network: &Cidr) -> bool {
    match network.address() {
        // Conservative: a network that is wider than any special range is not all public.
        IpAddr::V4(_) if network.prefix() < 8 => false,
        IpAddr::V6(_) if network.prefix() < 16 => false,
        address => {
            AddressScope::of(address) == AddressScope::Global
                && last(network).is_some_and(|last| AddressScope::of(last) == AddressScope::Global)
        }
    }
}

/// Whether a rule for `outer` names every address of `inner` that has to be named.
pub(super) fn names_all_of(outer: &Cidr, inner: &Cidr) -> bool {
    names(outer, inner.address()) && last(inner).is_some_and(|last| names(outer, last))
}

fn last(network: &Cidr) -> Option<IpAddr> {
    match network.address() {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shr(network.prefix().into()).unwrap_or(0);
            Some(IpAddr::V4((u32::from(v4) | mask).into()))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shr(network.prefix().into()).unwrap_or(0);
            Some(IpAddr::V6((u128::from(v6) | mask).into()))
        }
    }
}

/// Whether a rule for `network` names the special range in which `address` lies: it has to lie
/// within a range of that kind, so that 0.0.0.0/0 does not let a guest into the private network.
fn names(network: &Cidr, address: IpAddr) -> bool {
    let scope = AddressScope::of(address);
    network.contains(address)
        && AddressScope::of(network.address()) == scope
        && last(network).is_some_and(|last| AddressScope::of(last) == scope)
}

impl Policy {
    /// Decides about a flow.
    pub fn decide(&self, attempt: &Attempt<'_>) -> Verdict {
        let scope = AddressScope::of(attempt.address);
        let outgoing = attempt.direction == Direction::Out;
        if outgoing && !attempt.to_host && scope == AddressScope::Martian {
            return deny(Reason::NotNamed(scope));
        }
        let mut denies_names = false;
        for (index, rule) in self.rules.iter().enumerate() {
            let by_name = matches!(rule.target, Target::Domain(_));
            if matches(rule, attempt, scope) {
                let check_name = rule.action == Action::Allow
                    && (by_name || denies_names && matches!(rule.target, Target::Any));
                return Verdict {
                    action: rule.action,
                    reason: Reason::Rule {
                        index,
                        rule: label(rule),
                    },
                    check_name: check_name && attempt.protocol == Protocol::Tcp && outgoing,
                };
            }
            denies_names |= by_name && rule.action == Action::Deny;
        }
        let action = if outgoing {
            self.outgoing
        } else {
            self.incoming
        };
        if outgoing && action == Action::Allow {
            if attempt.to_host || attempt.host_address {
                return deny(Reason::HostAddress);
            }
            if scope.must_be_named() {
                return deny(Reason::NotNamed(scope));
            }
            if attempt.port == 53 && self.has_domain_rules() {
                return deny(Reason::ForeignDns);
            }
        }
        Verdict {
            action,
            reason: Reason::Default,
            check_name: outgoing && denies_names && attempt.protocol == Protocol::Tcp,
        }
    }

    /// Decides about an outgoing TCP flow again, now that its server name is known.
    pub fn decide_named(&self, attempt: &Attempt<'_>, server_name: &str) -> Verdict {
        let names = [server_name.to_owned()];
        let verdict = self.decide(&Attempt {
            names: &names,
            ..*attempt
        });
        match verdict.action {
            Action::Allow => verdict,
            Action::Deny => deny(Reason::ServerName(server_name.to_owned())),
        }
    }

    /// Decides whether the guest may look up `name` (in lower case, without a dot at its end). A
    /// lookup may pass where a flow to an address under that name might.
    pub fn decide_query(&self, name: &str) -> Verdict {
        for (index, rule) in self.rules.iter().enumerate() {
            let decides = rule.direction == Direction::Out
                && match &rule.target {
                    Target::Domain(pattern) => {
                        // A rule that denies some ports only leaves the others.
                        pattern.matches(name)
                            && (rule.action == Action::Allow
                                || rule.ports.is_empty() && rule.protocol == Protocol::Any)
                    }
                    Target::Any => {
                        rule.action == Action::Allow
                            || rule.ports.is_empty() && rule.protocol == Protocol::Any
                    }
                    Target::Network(_) | Target::Host => false,
                };
            if decides {
                return Verdict {
                    action: rule.action,
                    reason: Reason::Rule {
                        index,
                        rule: label(rule),
                    },
                    check_name: false,
                };
            }
        }
        Verdict {
            action: self.outgoing,
            reason: Reason::Default,
            check_name: false,
        }
    }

    fn has_domain_rules(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| matches!(rule.target, Target::Domain(_)))
    }
}

const fn deny(reason: Reason) -> Verdict {
    Verdict {
        action: Action::Deny,
        reason,
        check_name: false,
    }
}

fn matches(rule: &Rule, attempt: &Attempt<'_>, scope: AddressScope) -> bool {
    let allows = rule.action == Action::Allow;
    let outgoing = attempt.direction == Direction::Out;
    let fits = rule.direction == attempt.direction
        && (rule.protocol == Protocol::Any || rule.protocol == attempt.protocol)
        && (rule.ports.is_empty() || rule.ports.iter().any(|range| range.contains(attempt.port)));
    if !fits {
        return false;
    }
    let must_be_named =
        outgoing && (attempt.to_host || attempt.host_address || scope.must_be_named());
    match &rule.target {
        Target::Any => !(allows && must_be_named),
        Target::Host => attempt.to_host,
        Target::Network(_) if attempt.to_host => false,
        Target::Network(network) if allows && must_be_named => {
            let exact = *network == Cidr::host(attempt.address.to_canonical());
            exact || !attempt.host_address && names(network, attempt.address)
        }
        Target::Network(network) => network.contains(attempt.address),
        Target::Domain(pattern) => {
            // What hides its server name could be anybody behind a shared address.
            let quic = attempt.protocol == Protocol::Udp && attempt.port == 443;
            attempt.names.iter().any(|name| pattern.matches(name))
                && !(allows && must_be_named)
                && !(allows && quic && rule.protocol == Protocol::Any)
                // A name server behind an allowed name would carry questions about any other.
                && !(allows && attempt.port == 53 && rule.ports.is_empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempt(address: &str, port: u16) -> Attempt<'static> {
        Attempt {
            direction: Direction::Out,
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            port,
            names: &[],
            host_address: false,
            to_host: false,
        }
    }

    fn allowed(policy: &Policy, attempt: &Attempt<'_>) -> bool {
        policy.decide(attempt).action == Action::Allow
    }

    #[test]
    fn first_match_decides() {
        let policy = Policy {
            rules: vec![
                Rule::deny("8.8.8.0/24").unwrap(),
                Rule::allow("8.8.0.0/16:53").unwrap(),
            ],
            ..Policy::deny_all()
        };
        assert!(!allowed(&policy, &attempt("8.8.8.8", 53)));
        assert!(allowed(&policy, &attempt("8.8.4.4", 53)));
        assert!(!allowed(&policy, &attempt("8.8.4.4", 54)));
        assert!(!allowed(&policy, &attempt("9.9.9.9", 53)));
    }

    #[test]
    fn special_ranges_are_denied_unless_named() {
        let open = Policy::allow_all();
        let wide = Policy::allow_only(["any", "0.0.0.0/0", "::/0"]).unwrap();
        for address in [
            "10.0.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "169.254.1.1",
            "fd00::1",
            "fe80::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "127.0.0.1",
            "::1",
            "224.0.0.1",
        ] {
            assert!(!allowed(&open, &attempt(address, 80)), "{address}");
            assert!(!allowed(&wide, &attempt(address, 80)), "{address}");
        }
        assert!(allowed(&open, &attempt("1.1.1.1", 80)));
        let named = Policy::allow_only(["10.0.0.0/8", "169.254.0.0/16", "127.0.0.0/8"]).unwrap();
        assert!(allowed(&named, &attempt("10.0.0.1", 80)));
        assert!(allowed(&named, &attempt("169.254.1.1", 80)));
        assert!(!allowed(&named, &attempt("169.254.169.254", 80)));
        assert!(!allowed(&named, &attempt("127.0.0.1", 80)));
        let metadata = Policy::allow_only(["169.254.169.254"]).unwrap();
        assert!(allowed(&metadata, &attempt("169.254.169.254", 80)));
    }

    #[test]
    fn domain_rule_needs_an_answer_and_no_private_address() {
        let policy = Policy::allow_only(["example.com"]).unwrap();
        let names = ["example.com".to_owned()];
        let pinned = |address| Attempt {
            names: &names,
            ..attempt(address, 443)
        };
        let verdict = policy.decide(&pinned("1.2.3.4"));
        assert_eq!(verdict.action, Action::Allow);
        assert!(verdict.check_name);
        assert!(!allowed(&policy, &attempt("1.2.3.4", 443)));
        assert!(!allowed(&policy, &pinned("10.0.0.1")), "a rebinding answer");
        let quic = Attempt {
            protocol: Protocol::Udp,
            ..pinned("1.2.3.4")
        };
        assert!(!allowed(&policy, &quic));
        let dns = Attempt {
            port: 53,
            ..pinned("1.2.3.4")
        };
        assert!(!allowed(&policy, &dns));
        assert!(allowed(
            &Policy::allow_only(["example.com:53"]).unwrap(),
            &dns
        ));
        let named = |name| policy.decide_named(&pinned("1.2.3.4"), name).action;
        assert_eq!(named("example.com"), Action::Allow);
        assert_eq!(named("evil.example.org"), Action::Deny);
    }

    #[test]
    fn queries_outside_an_allow_list_are_denied() {
        let policy = Policy::allow_only(["example.com", "10.0.0.0/8"]).unwrap();
        assert_eq!(policy.decide_query("example.com").action, Action::Allow);
        assert_eq!(policy.decide_query("data.example.com").action, Action::Deny);
        assert_eq!(policy.decide_query("evil.org").action, Action::Deny);
        assert_eq!(
            Policy::allow_all().decide_query("evil.org").action,
            Action::Allow
        );
        let any = Policy::allow_only(["tcp:any:443"]).unwrap();
        assert_eq!(any.decide_query("evil.org").action, Action::Allow);
    }

    #[test]
    fn host_services_need_the_host_rule() {
        let to_host = Attempt {
            to_host: true,
            ..attempt("10.0.2.2", 5432)
        };
        assert!(!allowed(&Policy::allow_all(), &to_host));
        assert!(!allowed(
            &Policy::allow_only(["10.0.0.0/8"]).unwrap(),
            &to_host
        ));
        assert!(allowed(
            &Policy::allow_only(["host:5432"]).unwrap(),
            &to_host
        ));
        assert!(!allowed(
            &Policy::allow_only(["host:5433"]).unwrap(),
            &to_host
        ));
        let own = Attempt {
            host_address: true,
            ..attempt("1.2.3.4", 80)
        };
        assert!(!allowed(&Policy::allow_all(), &own));
        assert!(!allowed(&Policy::allow_only(["1.2.3.0/24"]).unwrap(), &own));
        assert!(allowed(&Policy::allow_only(["1.2.3.4"]).unwrap(), &own));
    }

    #[test]
    fn denied_names_hold_under_default_allow() {
        let policy = Policy {
            rules: vec![Rule::deny("*.evil.org").unwrap()],
            ..Policy::allow_all()
        };
        let plain = attempt("1.2.3.4", 443);
        assert!(policy.decide(&plain).check_name);
        assert_eq!(
            policy.decide_named(&plain, "a.evil.org").action,
            Action::Deny
        );
        assert_eq!(
            policy.decide_named(&plain, "good.org").action,
            Action::Allow
        );
        assert!(
            !allowed(&policy, &attempt("9.9.9.9", 53)),
            "DNS past the network's own"
        );
    }

    #[test]
    fn incoming_rules_look_at_the_client() {
        let policy = Policy {
            rules: vec![Rule::deny("192.0.2.0/24").unwrap().incoming()],
            ..Policy::allow_all()
        };
        let from = |address| Attempt {
            direction: Direction::In,
            ..attempt(address, 80)
        };
        assert!(allowed(&policy, &from("127.0.0.1")));
        assert!(!allowed(&policy, &from("192.0.2.9")));
        assert!(
            !allowed(&policy, &attempt("192.0.2.9", 80)),
            "private, not by that rule"
        );
    }
}
