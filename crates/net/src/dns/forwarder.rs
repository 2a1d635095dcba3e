//! From a guest's query to its answer.

use std::net::{IpAddr, SocketAddr};

use slab::Slab;

use super::cache::{Cache, lifetime};
use super::exchange::Exchange;
use super::message::{Answer, Query, Rcode};
use super::names::{self, Named};
use super::servers::ServerSource;
use crate::Resolver;
use crate::engine::Engine;
use crate::policy::{Action, Subject};

/// Queries of one guest that wait for an answer from outside; a further one fails.
const MAX_WAITING: usize = 256;
/// Zone transfers, and what only name servers ask each other.
const TRANSFERS: [u16; 3] = [249, 251, 252];

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// By a datagram from `from` to `to`.
    Udp { from: SocketAddr, to: SocketAddr },
    /// Over a connection, by the place of its flow.
    Tcp { flow: usize },
}

pub(crate) struct Dns {
    pub(crate) cache: Cache,
    pub(crate) servers: ServerSource,
    pub(crate) exchanges: Slab<Exchange>,
}

impl Dns {
    pub(crate) fn new(resolver: Resolver) -> Self {
        Self {
            cache: Cache::default(),
            servers: ServerSource::new(resolver),
            exchanges: Slab::new(),
        }
    }
}

impl Engine {
    /// Takes a query of a guest's.
    pub(crate) fn dns_query(&mut self, guest: usize, asker: Asker, message: &[u8]) {
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(reply) => return self.dns_reply(guest, asker, &reply.unwrap_or_default()),
        };
        if let Some(state) = self.guests.get_mut(guest) {
            state.counters.lookups += 1;
        }
        if query.class != 1 || TRANSFERS.contains(&query.record_type) {
            return self.dns_deliver(guest, asker, &query, query.reply(Rcode::Refused));
        }
        let named = self.dns_names(guest);
        if let Some(reply) = names::answer(&query, &named, |address| self.is_inside(address)) {
            return self.dns_deliver(guest, asker, &query, reply);
        }
        if !self.dns_may_ask(guest, &query) {
            return self.dns_deliver(guest, asker, &query, query.reply(Rcode::Refused));
        }
        if let Some((reply, answer)) = self.dns.cache.get(&query, self.now) {
            if let Some(state) = self.guests.get_mut(guest) {
                state.counters.cached_lookups += 1;
            }
            self.dns_pin(guest, &answer);
            return self.dns_deliver(guest, asker, &query, reply);
        }
        let waiting = self
            .dns
            .exchanges
            .iter()
            .filter(|(_, exchange)| exchange.guest == guest)
            .count();
        if waiting >= MAX_WAITING {
            return self.dns_deliver(guest, asker, &query, query.reply(Rcode::ServerFailure));
        }
        if self.dns.servers.refresh() {
            self.dns.cache.clear();
        }
        self.dns_start(guest, asker, query);
    }

    /// Whether the guest may look the name up, outside as it is.
    fn dns_may_ask(&mut self, guest: usize, query: &Query) -> bool {
        if !self.config.outside {
            return false;
        }
        let Some(state) = self.guests.get(guest) else {
            return false;
        };
        let verdict = state.config.policy.decide_query(&query.name);
        let subject = Subject::Query {
            name: query.name.clone(),
            record_type: query.record_type,
        };
        self.report(guest, subject, &verdict) == Action::Allow
    }

    /// Who has a name that this guest may know.
    fn dns_names(&self, guest: usize) -> Vec<Named> {
        let config = &self.config;
        let own = [
            ("gateway", config.gateway4(), config.gateway6()),
            ("host", config.host4(), config.host6()),
        ];
        let own = own.map(|(name, ipv4, ipv6)| Named {
            name: name.to_owned(),
            ipv4,
            ipv6,
        });
        let guests = self
            .guests
            .iter()
            .filter(|(index, _)| config.peers || *index == guest);
        let guests = guests.map(|(_, state)| Named {
            name: state.config.name.as_str().to_owned(),
            ipv4: state.addresses.ipv4,
            ipv6: state.addresses.ipv6,
        });
        own.into_iter().chain(guests).collect()
    }

    /// An answer came from outside.
    pub(crate) fn dns_answered(
        &mut self,
        guest: usize,
        asker: Asker,
        query: &Query,
        message: Vec<u8>,
        answer: &Answer,
    ) {
        self.dns.cache.put(query, &message, answer, self.now);
        self.dns_pin(guest, answer);
        let mut message = message;
        query.address(&mut message);
        self.dns_deliver(guest, asker, query, message);
    }

    /// Remembers the addresses that a guest is given, for its domain rules.
    fn dns_pin(&mut self, guest: usize, answer: &Answer) {
        let now = self.now;
        let Some(state) = self.guests.get_mut(guest) else {
            return;
        };
        for address in &answer.addresses {
            for name in &answer.names {
                state.pins.pin(*address, name, lifetime(answer), now);
            }
        }
        if state.config.policy.learn
            && !answer.addresses.is_empty()
            && let Some(name) = answer.names.first()
        {
            state.learned.lookup(name);
        }
    }

    pub(crate) fn dns_deliver(
        &mut self,
        guest: usize,
        asker: Asker,
        query: &Query,
        reply: Vec<u8>,
    ) {
        let reply = match asker {
            Asker::Udp { .. } => query.fit_udp(reply),
            Asker::Tcp { .. } => reply,
        };
        self.dns_reply(guest, asker, &reply);
    }

    fn dns_reply(&mut self, guest: usize, asker: Asker, reply: &[u8]) {
        match asker {
            Asker::Udp { .. } if reply.is_empty() => {}
            Asker::Udp { from, to } => self.send_udp(guest, to, from, reply),
            Asker::Tcp { flow } => {
                if let Some((_, stream)) = self.tcp_dns_stream(flow) {
                    stream.answer(reply);
                    self.tcp_list(flow);
                }
            }
        }
    }

    /// Takes the queries that came over a connection.
    pub(crate) fn tcp_deliver_queries(&mut self, flow: usize) {
        let Some((key, stream)) = self.tcp_dns_stream(flow) else {
            return;
        };
        for query in stream.take_queries() {
            self.dns_query(key.guest, Asker::Tcp { flow }, &query);
        }
    }

    /// Whether an address lies in one of the network's own ranges.
    pub(crate) fn is_inside(&self, address: IpAddr) -> bool {
        let networks = [self.config.ipv4, self.config.ipv6];
        networks
            .into_iter()
            .flatten()
            .any(|network| network.contains(address))
    }
}
