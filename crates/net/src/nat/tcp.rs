//! TCP flows: a guest's connection on one side, a socket of the host on the other
//! (RFC 9293; both sides keep their own windows, and each one's back-pressure reaches the other).

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use slab::Slab;

use super::dns_stream::DnsStream;
use super::stack::{Ends, Exit, Stack};
use super::transfer::HostEnd;
use super::turn::{OpenFlow, Peer};
use crate::config::GATEWAY_MAC;
use crate::control::Notice;
use crate::engine::guest::Guest;
use crate::engine::{Engine, Source};
use crate::link::Link;
use crate::policy::{Action, Direction, Protocol};
use crate::sys;
use crate::wire::build::Unreachable;
use crate::wire::frame::FramePool;
use crate::wire::ip::{IpPacket, TcpSegment};

/// The smallest and largest buffer of one direction of a flow.
const MIN_BUFFER: u64 = 8 << 10;
const MAX_BUFFER: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TcpKey {
    pub(crate) guest: usize,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
}

pub(crate) struct TcpFlow {
    pub(crate) key: TcpKey,
    pub(crate) direction: Direction,
    pub(super) state: FlowState,
    /// The earliest of its entries among the timers.
    pub(super) timer: Option<Instant>,
    /// Whether it is in the list of flows that need a turn.
    pub(super) listed: bool,
    /// Whether it is in its guest's list of flows that wait for room.
    pub(super) waiting: bool,
}

pub(super) enum FlowState {
    /// The host's connection has no answer yet. The guest's SYN waits for it.
    Connecting {
        fd: OwnedFd,
        syn: Vec<u8>,
        check_name: bool,
    },
    Open(Box<OpenFlow>),
    /// On its way from one to the other.
    Vacant,
}

#[derive(Default)]
pub(crate) struct TcpFlows {
    pub(crate) slab: Slab<TcpFlow>,
    pub(super) by_key: HashMap<TcpKey, usize>,
}

impl Engine {
    /// Takes a TCP segment of a guest's.
    pub(crate) fn tcp_packet(&mut self, guest: usize, packet: &IpPacket<'_>) {
        let Some(segment) = TcpSegment::parse(packet) else {
            return;
        };
        let key = TcpKey {
            guest,
            local: segment.src,
            remote: segment.dst,
        };
        let Some(index) = self.tcp.by_key.get(&key).copied() else {
            if segment.opens() {
                self.tcp_open(key, packet, &segment);
            } else if !segment.is_reset() {
                self.send_reset(guest, &segment);
            }
            return;
        };
        let time = self.stack_time();
        let Some(flow) = self.tcp.slab.get_mut(index) else {
            return;
        };
        match &mut flow.state {
            // The guest's SYN again: its answer is still under way.
            FlowState::Connecting { .. } | FlowState::Vacant => {
                if segment.is_reset() {
                    self.tcp_remove(index, false);
                }
            }
            FlowState::Open(open) => {
                let Some(guest) = self.guests.get_mut(guest) else {
                    return;
                };
                let mut exit = exit_of(guest, &mut self.pool, self.now);
                open.take(packet.bytes, &mut exit, time);
                self.tcp_list(index);
            }
        }
    }

    /// Starts the host's side of a connection that the guest opens.
    fn tcp_open(&mut self, key: TcpKey, packet: &IpPacket<'_>, segment: &TcpSegment) {
        if self.is_gateway(key.remote.ip()) {
            if key.remote.port() == 53 {
                self.tcp_open_dns(key, packet);
            } else {
                self.send_reset(key.guest, segment);
            }
            return;
        }
        let verdict = self.judge(
            key.guest,
            Direction::Out,
            Protocol::Tcp,
            key.local,
            key.remote,
        );
        if verdict.action == Action::Deny {
            return self.send_reset(key.guest, segment);
        }
        if !self.tcp_make_room(key.guest) {
            return self.send_reset(key.guest, segment);
        }
        let target = self.outside_address(key.remote);
        let connected = sys::connect_tcp(target).or_else(|error| {
            if sys::is_out_of_descriptors(&error) && self.free_descriptors(key.guest) {
                return sys::connect_tcp(target);
            }
            Err(error)
        });
        match connected {
            Ok(fd) => {
                let raw = fd.as_raw_fd();
                let state = FlowState::Connecting {
                    fd,
                    syn: packet.bytes.to_vec(),
                    check_name: verdict.check_name,
                };
                let index = self.tcp_insert(key, Direction::Out, state);
                if self.register(raw, Source::Tcp(index)).is_err() {
                    return self.tcp_remove(index, false);
                }
                if let Some(guest) = self.guests.get_mut(key.guest) {
                    guest.tcp_pending.push_back(index);
                }
            }
            Err(error) => self.tcp_refuse(key.guest, packet, segment, &error),
        }
    }

    /// Tells the guest what became of its SYN.
    fn tcp_refuse(
        &mut self,
        guest: usize,
        packet: &IpPacket<'_>,
        segment: &TcpSegment,
        error: &io::Error,
    ) {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::NetworkUnreachable => self.send_unreachable(guest, packet, Unreachable::Network),
            Kind::HostUnreachable | Kind::AddrNotAvailable => {
                self.send_unreachable(guest, packet, Unreachable::Host);
            }
            // The guest has waited as long: its own time is up as well.
            Kind::TimedOut => {}
            Kind::PermissionDenied => self.send_unreachable(guest, packet, Unreachable::Prohibited),
            _ if sys::is_out_of_descriptors(error) => {
                self.notify(Notice::OutOfDescriptors);
                self.send_reset(guest, segment);
            }
            Kind::ConnectionRefused | Kind::ConnectionReset => self.send_reset(guest, segment),
            _ => self.send_unreachable(guest, packet, Unreachable::Host),
        }
    }

    /// Connects a client of a port forward, which was accepted, to the guest.
    pub(crate) fn tcp_call_guest(&mut self, key: TcpKey, fd: OwnedFd) {
        let raw = fd.as_raw_fd();
        if !self.tcp_make_room(key.guest) {
            return sys::reset_on_close(fd.as_fd());
        }
        let Some(ends) = self.ends(&key) else { return };
        let time = self.stack_time();
        let Some(guest) = self.guests.get_mut(key.guest) else {
            return;
        };
        let mut exit = exit_of(guest, &mut self.pool, self.now);
        let Some(stack) = Stack::call(&ends, &mut exit, time) else {
            return sys::reset_on_close(fd.as_fd());
        };
        let open = OpenFlow::new(
            stack,
            Peer::Host(HostEnd::new(fd)),
            ends.buffer as u64,
            false,
        );
        guest.tcp_buffers += open.buffer * 2;
        let index = self.tcp_insert(key, Direction::In, FlowState::Open(Box::new(open)));
        if self.register(raw, Source::Tcp(index)).is_err() {
            return self.tcp_remove(index, true);
        }
        self.tcp_list(index);
    }

    /// A connection to the network's own DNS.
    fn tcp_open_dns(&mut self, key: TcpKey, packet: &IpPacket<'_>) {
        if self.tcp_make_room(key.guest) {
            self.tcp_answer(
                key,
                packet.bytes,
                Peer::Dns(DnsStream::default()),
                false,
                None,
            );
        }
    }

    /// Lets a stack answer the guest's SYN. `at` is the flow's place if it has one. False when
    /// there can be none.
    fn tcp_answer(
        &mut self,
        key: TcpKey,
        syn: &[u8],
        peer: Peer,
        check_name: bool,
        at: Option<usize>,
    ) -> bool {
        let Some(ends) = self.ends(&key) else {
            return false;
        };
        let time = self.stack_time();
        let Some(guest) = self.guests.get_mut(key.guest) else {
            return false;
        };
        let mut exit = exit_of(guest, &mut self.pool, self.now);
        let Some(mut stack) = Stack::answer(&ends, &mut exit, time) else {
            return false;
        };
        stack.ingress(syn, &mut exit, time);
        let open = OpenFlow::new(stack, peer, ends.buffer as u64, check_name);
        guest.tcp_buffers += open.buffer * 2;
        let state = FlowState::Open(Box::new(open));
        let index = match at.and_then(|index| Some((index, self.tcp.slab.get_mut(index)?))) {
            Some((index, flow)) => {
                flow.state = state;
                index
            }
            None => self.tcp_insert(key, Direction::Out, state),
        };
        self.tcp_list(index);
        true
    }

    fn tcp_insert(&mut self, key: TcpKey, direction: Direction, state: FlowState) -> usize {
        let index = self.tcp.slab.insert(TcpFlow {
            key,
            direction,
            state,
            timer: None,
            listed: false,
            waiting: false,
        });
        self.tcp.by_key.insert(key, index);
        if let Some(guest) = self.guests.get_mut(key.guest) {
            guest.tcp_flows += 1;
            guest.counters.tcp_flows += 1;
        }
        index
    }

    /// What a new stack is made for: its buffers are smaller the less is left of the guest's share.
    fn ends(&self, key: &TcpKey) -> Option<Ends> {
        let guest = self.guests.get(key.guest)?;
        let limits = &self.config.limits;
        let left = limits.tcp_buffers.saturating_sub(guest.tcp_buffers);
        // Every flow that may still come finds room for the smallest buffers.
        let to_come = u64::from(limits.tcp_flows.saturating_sub(guest.tcp_flows));
        let spare = left.saturating_sub(to_come * MIN_BUFFER * 2);
        let buffer = (spare / 64).clamp(MIN_BUFFER, MAX_BUFFER);
        let buffer = 1u64.checked_shl(buffer.ilog2()).unwrap_or(MIN_BUFFER);
        Some(Ends {
            ours: key.remote,
            guest: key.local,
            buffer: usize::try_from(buffer).ok()?,
            mtu: self.config.mtu,
            seed: self.random(),
        })
    }

    /// Whether the guest may have one more flow. Takes the oldest one's place that still waits for
    /// its server.
    fn tcp_make_room(&mut self, guest: usize) -> bool {
        let limits = self.config.limits;
        loop {
            let Some(state) = self.guests.get_mut(guest) else {
                return false;
            };
            let left = limits.tcp_buffers.saturating_sub(state.tcp_buffers);
            let full = state.tcp_flows >= limits.tcp_flows || left < MIN_BUFFER * 2;
            let crowded = state.tcp_pending.len() >= limits.tcp_pending as usize;
            if !full && !crowded {
                return true;
            }
            let Some(oldest) = state.tcp_pending.pop_front() else {
                state.counters.refused_flows += 1;
                let name = state.config.name.clone();
                self.notify(Notice::FlowLimit(name));
                return false;
            };
            self.tcp_remove(oldest, false);
        }
    }

    /// Gives up the oldest unanswered connection, or the longest unused datagram flow.
    pub(crate) fn free_descriptors(&mut self, guest: usize) -> bool {
        let Some(state) = self.guests.get_mut(guest) else {
            return false;
        };
        if let Some(oldest) = state.tcp_pending.pop_front() {
            self.tcp_remove(oldest, false);
            return true;
        }
        self.datagram_evict(guest)
    }

    /// The host's socket has news.
    pub(crate) fn tcp_event(&mut self, index: usize, readable: bool, writable: bool, ending: bool) {
        let Some(flow) = self.tcp.slab.get_mut(index) else {
            return;
        };
        match &mut flow.state {
            FlowState::Connecting { .. } => {
                if writable || ending {
                    self.tcp_connected(index);
                }
            }
            FlowState::Vacant => {}
            FlowState::Open(open) => {
                if let Peer::Host(host) = &mut open.peer {
                    host.readable |= readable || ending;
                    host.writable |= writable;
                    host.drain |= ending;
                }
                self.tcp_list(index);
            }
        }
    }

    /// The host's connection has its answer.
    fn tcp_connected(&mut self, index: usize) {
        let Some(flow) = self.tcp.slab.get_mut(index) else {
            return;
        };
        let key = flow.key;
        let state = std::mem::replace(&mut flow.state, FlowState::Vacant);
        let FlowState::Connecting {
            fd,
            syn,
            check_name,
        } = state
        else {
            return;
        };
        if let Some(guest) = self.guests.get_mut(key.guest) {
            guest.tcp_pending.retain(|pending| *pending != index);
        }
        match sys::take_error(fd.as_fd()) {
            Ok(()) => {
                let peer = Peer::Host(HostEnd::new(fd));
                if !self.tcp_answer(key, &syn, peer, check_name, Some(index)) {
                    self.tcp_remove(index, false);
                }
            }
            Err(error) => {
                drop(fd);
                self.tcp_remove(index, false);
                if let Some(packet) = IpPacket::parse(&syn)
                    && let Some(segment) = TcpSegment::parse(&packet)
                {
                    self.tcp_refuse(key.guest, &packet, &segment, &error);
                }
            }
        }
    }
}

/// Where packets to a guest go.
pub(crate) fn exit_of<'a>(guest: &'a mut Guest, pool: &'a mut FramePool, now: Instant) -> Exit<'a> {
    Exit {
        accepts: guest.link.as_ref().map(Link::accepts).unwrap_or_default(),
        to: guest.addresses.mac,
        from: GATEWAY_MAC,
        outbox: &mut guest.outbox,
        pool,
        now,
    }
}
