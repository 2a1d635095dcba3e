//! Sending to guests.

use std::net::{IpAddr, SocketAddr};

use super::{Engine, FlowRef, timers::Deadline};
use crate::config::GATEWAY_MAC;
use crate::control::Event;
use crate::services::ndp;
use crate::wire::build::{Builder, Unreachable};
use crate::wire::frame::Frame;
use crate::wire::ip::{IpPacket, TcpSegment};
use crate::wire::reassembly::cut;

/// Frames that are finished ahead of being sent.
const AHEAD: usize = 64;

impl Engine {
    /// Makes a frame for a guest and puts it on its way.
    pub(crate) fn send_built(
        &mut self,
        guest: usize,
        build: impl FnOnce(&mut Builder<'_>) -> Frame,
    ) {
        let Some(state) = self.guests.get_mut(guest) else {
            return;
        };
        let mut builder = Builder {
            pool: &mut self.pool,
            to: state.addresses.mac,
            from: GATEWAY_MAC,
        };
        let frame = build(&mut builder);
        state.outbox.push(frame, self.now, &mut self.pool);
        self.mark_guest(guest);
    }

    pub(crate) fn send_reset(&mut self, guest: usize, segment: &TcpSegment) {
        self.send_built(guest, |builder| builder.reset(segment));
    }

    /// Tells a guest that its packet was not delivered, unless nobody must be told
    /// (RFC 1122 section 3.2.2, RFC 4443 section 2.4).
    pub(crate) fn send_unreachable(
        &mut self,
        guest: usize,
        about: &IpPacket<'_>,
        error: Unreachable,
    ) {
        if about.dst.is_multicast() || about.src.is_unspecified() {
            return;
        }
        // Nearly always the gateway says so; that it is on the guest's network matters to guests
        // which filter by source.
        let gateway = self.gateway_like(about.src);
        let Some(gateway) = gateway else { return };
        self.send_built(guest, |builder| builder.unreachable(gateway, about, error));
    }

    pub(crate) fn send_udp(
        &mut self,
        guest: usize,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
    ) {
        let mtu = usize::from(self.config.mtu);
        let header = if from.is_ipv4() { 28 } else { 48 };
        if payload.len() + header <= mtu {
            return self.send_built(guest, |builder| builder.udp(from, to, payload));
        }
        let id = self.random() as u32;
        let Some(state) = self.guests.get_mut(guest) else {
            return;
        };
        let mut builder = Builder {
            pool: &mut self.pool,
            to: state.addresses.mac,
            from: GATEWAY_MAC,
        };
        let frame = builder.udp(from, to, payload);
        for piece in cut(frame, mtu, id, &mut self.pool) {
            state.outbox.push(piece, self.now, &mut self.pool);
        }
        self.mark_guest(guest);
    }

    pub(crate) fn send_echo_reply(
        &mut self,
        guest: usize,
        from: IpAddr,
        to: SocketAddr,
        sequence: u16,
        data: &[u8],
    ) {
        let mtu = usize::from(self.config.mtu);
        let id = self.random() as u32;
        let Some(state) = self.guests.get_mut(guest) else {
            return;
        };
        let mut builder = Builder {
            pool: &mut self.pool,
            to: state.addresses.mac,
            from: GATEWAY_MAC,
        };
        let frame = builder.echo_reply(from, to.ip(), to.port(), sequence, data);
        for piece in cut(frame, mtu, id, &mut self.pool) {
            state.outbox.push(piece, self.now, &mut self.pool);
        }
        self.mark_guest(guest);
    }

    /// The gateway's address of the kind that `address` is.
    pub(crate) fn gateway_like(&self, address: IpAddr) -> Option<IpAddr> {
        match address {
            IpAddr::V4(_) => self.config.gateway4().map(IpAddr::V4),
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Some(IpAddr::V6(ndp::ROUTER)),
            IpAddr::V6(_) => self.config.gateway6().map(IpAddr::V6),
        }
    }

    /// Sends a guest what is on its way to it, as far as its link takes it, and lets flows go on
    /// that waited for room.
    pub(crate) fn flush_guest(&mut self, index: usize) {
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        guest.marked = false;
        let held_until = guest.outbox.release(self.now);
        let Some(link) = &mut guest.link else {
            return guest.outbox.clear();
        };
        let mut closed = false;
        loop {
            while guest.sending.len() < AHEAD
                && let Some(frame) = guest.outbox.ready.pop_front()
            {
                let (sending, counters, capture) =
                    (&mut guest.sending, &mut guest.counters, &mut self.capture);
                link.finish(frame, &mut self.pool, |piece| {
                    counters.frames_to += 1;
                    counters.bytes_to += piece.ethernet().len() as u64;
                    if let Some(capture) = capture {
                        capture.frame(index, false, piece.ethernet());
                    }
                    sending.push_back(piece);
                });
            }
            if guest.sending.is_empty() {
                break;
            }
            match link.send(&mut guest.sending, &mut self.pool) {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    closed = true;
                    break;
                }
            }
        }
        guest.outbox.sent();
        guest.counters.dropped = guest.outbox.dropped;
        if let Some(at) = held_until
            && guest.link_timer.is_none_or(|timer| at < timer)
        {
            guest.link_timer = Some(at);
            self.timers.add(at, Deadline::Link(index));
        }
        let waiting = if guest.outbox.has_room() {
            std::mem::take(&mut guest.waiting)
        } else {
            Default::default()
        };
        for flow in waiting {
            match flow {
                FlowRef::Tcp(flow) => self.tcp_resume(flow),
                FlowRef::Datagram(flow) => self.datagram_resume(flow),
            }
        }
        if closed {
            self.link_closed(index);
        }
    }

    /// The other side of a guest's link is gone, and so are its flows.
    pub(crate) fn link_closed(&mut self, index: usize) {
        if let Some(fd) = self.link_fd(index) {
            self.deregister(fd);
        }
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        if guest.link.take().is_none() {
            return;
        }
        guest.outbox.clear();
        guest.sending.clear();
        guest.waiting.clear();
        guest.inbox.held.clear();
        guest.inbox.cost = 0;
        let name = guest.config.name.clone();
        self.end_flows(index);
        self.event_out(Event::LinkClosed(name));
    }

    /// Ends every flow of a guest.
    pub(crate) fn end_flows(&mut self, guest: usize) {
        for flow in self.tcp_flows_of(guest) {
            self.tcp_break(flow);
        }
        for flow in self.datagram_flows_of(guest) {
            self.datagram_remove(flow);
        }
        self.dns_forget_guest(guest);
        self.forward_forget_clients(guest);
    }
}
