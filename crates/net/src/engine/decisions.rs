//! Asking a guest's policy, and telling what it decided.

use std::net::{IpAddr, SocketAddr};

use super::Engine;
use crate::AddressScope;
use crate::control::Event;
use crate::policy::{Action, Attempt, Direction, PolicyEvent, Protocol, Reason, Subject, Verdict};
use crate::sys;

impl Engine {
    /// Decides about a flow between the guest's end `local` and the other end `remote`. The
    /// verdict's action is what is to happen, also where the policy only watches.
    pub(crate) fn judge(
        &mut self,
        guest: usize,
        direction: Direction,
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Verdict {
        let (mut verdict, names) = self.ask(guest, direction, protocol, local, remote, None);
        let to_host = self.is_host_alias(remote.ip());
        let attempt = attempt(direction, protocol, local, remote, &names, to_host);
        if let Some(state) = self.guests.get_mut(guest)
            && state.config.policy.learn
            && may_be_learned(&verdict.reason)
        {
            state.learned.flow(&attempt);
        }
        let subject = Subject::Flow {
            direction,
            protocol,
            guest: local,
            remote,
            names,
        };
        verdict.action = self.report(guest, subject, &verdict);
        verdict
    }

    /// Decides about a flow again, now that its server name is known.
    pub(crate) fn judge_name(
        &mut self,
        guest: usize,
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
        name: &str,
    ) -> Verdict {
        self.ask(guest, Direction::Out, protocol, local, remote, Some(name))
            .0
    }

    /// Tells that a flow was denied by its server name; false when it passes all the same.
    pub(crate) fn deny_named(
        &mut self,
        guest: usize,
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
        reason: Reason,
    ) -> bool {
        let now = self.now;
        let names = self
            .guests
            .get(guest)
            .map(|state| state.pins.names(remote.ip(), now));
        let subject = Subject::Flow {
            direction: Direction::Out,
            protocol,
            guest: local,
            remote,
            names: names.unwrap_or_default(),
        };
        let verdict = Verdict {
            action: Action::Deny,
            reason,
            check_name: false,
        };
        self.report(guest, subject, &verdict) == Action::Deny
    }

    /// Whether the policy in force still allows a flow; tells nobody.
    pub(crate) fn still_allowed(
        &self,
        guest: usize,
        direction: Direction,
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> bool {
        let learns = self
            .guests
            .get(guest)
            .is_some_and(|state| state.config.policy.learn);
        let (verdict, _) = self.ask(guest, direction, protocol, local, remote, None);
        verdict.action == Action::Allow || learns && may_be_learned(&verdict.reason)
    }

    fn ask(
        &self,
        guest: usize,
        direction: Direction,
        protocol: Protocol,
        local: SocketAddr,
        remote: SocketAddr,
        server_name: Option<&str>,
    ) -> (Verdict, Vec<String>) {
        let deny = |reason| Verdict {
            action: Action::Deny,
            reason,
            check_name: false,
        };
        let Some(state) = self.guests.get(guest) else {
            return (deny(Reason::Default), Vec::new());
        };
        let names = state.pins.names(remote.ip(), self.now);
        let to_host = direction == Direction::Out && self.is_host_alias(remote.ip());
        if direction == Direction::Out && !self.config.outside && !to_host {
            return (deny(Reason::NoWayOut), names);
        }
        let policy = &state.config.policy;
        let mut attempt = attempt(direction, protocol, local, remote, &names, to_host);
        let decide = |attempt: &Attempt<'_>| match server_name {
            Some(name) => policy.decide_named(attempt, name),
            None => policy.decide(attempt),
        };
        let mut verdict = decide(&attempt);
        // Asking the system is dear, so only where the answer matters.
        let matters = verdict.action == Action::Allow || policy.learn;
        if matters && direction == Direction::Out && !to_host && sys::is_own_address(remote.ip()) {
            attempt.host_address = true;
            verdict = decide(&attempt);
        }
        (verdict, names)
    }

    /// Counts and tells a decision; returns what is to happen.
    pub(crate) fn report(&mut self, guest: usize, subject: Subject, verdict: &Verdict) -> Action {
        let Some(state) = self.guests.get_mut(guest) else {
            return Action::Deny;
        };
        let denied = verdict.action == Action::Deny;
        let learned = denied && state.config.policy.learn && may_be_learned(&verdict.reason);
        if denied && !learned {
            state.counters.denied += 1;
        }
        if self.control.wants_policy() || tracing::enabled!(tracing::Level::DEBUG) {
            let event = PolicyEvent {
                guest: state.config.name.clone(),
                subject,
                action: verdict.action,
                reason: verdict.reason.clone(),
                learned,
            };
            tracing::debug!("{event}");
            if self.control.wants_policy() {
                self.event_out(Event::Policy(event));
            }
        }
        if learned {
            Action::Allow
        } else {
            verdict.action
        }
    }

    /// Whether an address stands for the host's loopback services.
    pub(crate) fn is_host_alias(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.config.host4() == Some(v4),
            IpAddr::V6(v6) => self.config.host6() == Some(v6),
        }
    }

    /// Where on the host a flow really goes.
    pub(crate) fn outside_address(&self, remote: SocketAddr) -> SocketAddr {
        if self.is_host_alias(remote.ip()) {
            SocketAddr::new(sys::loopback_like(remote.ip()), remote.port())
        } else {
            remote
        }
    }
}

/// Whether a policy that only watches lets such a flow pass.
const fn may_be_learned(reason: &Reason) -> bool {
    !matches!(
        reason,
        Reason::NoWayOut | Reason::NotNamed(AddressScope::Martian)
    )
}

const fn attempt<'a>(
    direction: Direction,
    protocol: Protocol,
    local: SocketAddr,
    remote: SocketAddr,
    names: &'a [String],
    to_host: bool,
) -> Attempt<'a> {
    let port = match (direction, protocol) {
        (_, Protocol::Icmp) => 0,
        (Direction::Out, _) => remote.port(),
        (Direction::In, _) => local.port(),
    };
    Attempt {
        direction,
        protocol,
        address: remote.ip(),
        port,
        names,
        host_address: false,
        to_host,
    }
}
