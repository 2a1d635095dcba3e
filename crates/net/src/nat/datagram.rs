//! UDP flows (RFC 4787) and ICMP echo: each has a connected socket of the host, which so hears of
//! errors, and ends after a time without packets.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv, send};
use slab::Slab;

use crate::bytes::put;
use crate::control::{FlowInfo, Notice};
use crate::engine::{Engine, FlowRef, Source, timers::Deadline};
use crate::policy::{Action, Direction, Protocol};
use crate::sys;
use crate::wire::build::Unreachable;
use crate::wire::ip::{EchoRequest, IpPacket, UdpDatagram};

/// RFC 4787 asks for two minutes at least; an unanswered flow needs no such patience.
const LIFETIME_ANSWERED: Duration = Duration::from_secs(180);
const LIFETIME: Duration = Duration::from_secs(60);
const LIFETIME_ECHO: Duration = Duration::from_secs(30);
/// Datagrams that one flow delivers before others get their turn.
const TURN: usize = 64;
const MAX_DATAGRAM: usize = 65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DatagramKey {
    guest: usize,
    /// The guest's end; for an echo its identifier stands for the port.
    local: SocketAddr,
    /// The other end; port 0 for an echo.
    remote: SocketAddr,
    echo: bool,
}

pub(crate) struct DatagramFlow {
    key: DatagramKey,
    fd: OwnedFd,
    /// Whether replies come from a raw socket.
    raw: bool,
    dont_fragment: bool,
    used: Instant,
    answered: bool,
    readable: bool,
    listed: bool,
    waiting: bool,
    /// Headers and first bytes of the last packet, which ICMP errors quote.
    last: Vec<u8>,
    to_guest: u64,
    from_guest: u64,
}

#[derive(Default)]
pub(crate) struct DatagramFlows {
    slab: Slab<DatagramFlow>,
    by_key: HashMap<DatagramKey, usize>,
    buffer: Vec<u8>,
}

impl DatagramFlow {
    const fn lifetime(&self) -> Duration {
        match (self.key.echo, self.answered) {
            (true, _) => LIFETIME_ECHO,
            (false, true) => LIFETIME_ANSWERED,
            (false, false) => LIFETIME,
        }
    }
}

impl Engine {
    /// Takes a UDP datagram of a guest's which goes to the outside.
    pub(crate) fn udp_packet(
        &mut self,
        guest: usize,
        packet: &IpPacket<'_>,
        datagram: &UdpDatagram<'_>,
    ) {
        let key = DatagramKey {
            guest,
            local: datagram.src,
            remote: datagram.dst,
            echo: false,
        };
        let Some(index) = self.datagram_flow(key, packet) else {
            return;
        };
        self.datagram_send(index, packet, datagram.payload);
    }

    /// Takes an echo request of a guest's which goes to the outside.
    pub(crate) fn echo_packet(
        &mut self,
        guest: usize,
        packet: &IpPacket<'_>,
        echo: &EchoRequest<'_>,
    ) {
        let key = DatagramKey {
            guest,
            local: SocketAddr::new(packet.src, echo.identifier),
            remote: SocketAddr::new(packet.dst, 0),
            echo: true,
        };
        let Some(index) = self.datagram_flow(key, packet) else {
            return;
        };
        let mut message = packet.payload.to_vec();
        // The host's kernel puts its own identifier and checksum in.
        put(&mut message, 2, &[0, 0]);
        let raw = self.datagrams.slab.get(index).is_some_and(|flow| flow.raw);
        if raw && packet.src.is_ipv4() {
            let checksum = crate::wire::checksum::Sum::default().add(&message).finish();
            put(&mut message, 2, &checksum);
        }
        self.datagram_send(index, packet, &message);
    }

    /// The flow of a packet: the one there is, or a new one if policy and limits let it.
    fn datagram_flow(&mut self, key: DatagramKey, packet: &IpPacket<'_>) -> Option<usize> {
        if let Some(index) = self.datagrams.by_key.get(&key) {
            return Some(*index);
        }
        let protocol = if key.echo {
            Protocol::Icmp
        } else {
            Protocol::Udp
        };
        let verdict = self.judge(key.guest, Direction::Out, protocol, key.local, key.remote);
        if verdict.action == Action::Deny {
            self.send_unreachable(key.guest, packet, Unreachable::Prohibited);
            return None;
        }
        let most = self.config.limits.udp_flows as usize;
        while self.guests.get(key.guest)?.datagram_flows.len() >= most {
            if !self.datagram_evict(key.guest) {
                return None;
            }
        }
        let mut opened = self.datagram_open(&key);
        if let Err(error) = &opened
            && sys::is_out_of_descriptors(error)
            && self.free_descriptors(key.guest)
        {
            opened = self.datagram_open(&key);
        }
        match opened {
            Ok((fd, raw)) => self.datagram_insert(key, fd, raw),
            Err(error) => {
                self.datagram_refuse(key, packet, &error);
                None
            }
        }
    }

    fn datagram_open(&self, key: &DatagramKey) -> io::Result<(OwnedFd, bool)> {
        let target = self.outside_address(key.remote);
        if key.echo {
            sys::connect_ping(target.ip()).map(|socket| (socket.fd, socket.raw))
        } else {
            sys::connect_udp(target).map(|fd| (fd, false))
        }
    }

    fn datagram_refuse(&mut self, key: DatagramKey, packet: &IpPacket<'_>, error: &io::Error) {
        let answer = match error.kind() {
            io::ErrorKind::NetworkUnreachable => Unreachable::Network,
            io::ErrorKind::PermissionDenied if key.echo => {
                self.notify(Notice::NoPing);
                Unreachable::Prohibited
            }
            io::ErrorKind::PermissionDenied => Unreachable::Prohibited,
            _ if sys::is_out_of_descriptors(error) => {
                self.notify(Notice::OutOfDescriptors);
                Unreachable::Host
            }
            _ => Unreachable::Host,
        };
        self.send_unreachable(key.guest, packet, answer);
    }

    fn datagram_insert(&mut self, key: DatagramKey, fd: OwnedFd, raw: bool) -> Option<usize> {
        let descriptor = fd.as_raw_fd();
        let flow = DatagramFlow {
            key,
            fd,
            raw,
            dont_fragment: false,
            used: self.now,
            answered: false,
            readable: false,
            listed: false,
            waiting: false,
            last: Vec::new(),
            to_guest: 0,
            from_guest: 0,
        };
        let lifetime = flow.lifetime();
        sys::set_dont_fragment(flow.fd.as_fd(), key.remote.is_ipv4(), false);
        let index = self.datagrams.slab.insert(flow);
        self.datagrams.by_key.insert(key, index);
        if let Some(guest) = self.guests.get_mut(key.guest) {
            guest.datagram_flows.push_back(FlowRef::Datagram(index));
            guest.counters.datagram_flows += 1;
        }
        if self.register(descriptor, Source::Datagram(index)).is_err() {
            self.datagram_remove(index);
            return None;
        }
        self.timers
            .add(self.now + lifetime, Deadline::Datagram(index));
        Some(index)
    }

    fn datagram_send(&mut self, index: usize, packet: &IpPacket<'_>, payload: &[u8]) {
        let Some(flow) = self.datagrams.slab.get_mut(index) else {
            return;
        };
        flow.used = self.now;
        flow.from_guest += payload.len() as u64;
        flow.last.clear();
        flow.last
            .extend_from_slice(packet.bytes.get(..128).unwrap_or(packet.bytes));
        // A packet that was put together from fragments may be taken apart again.
        let dont_fragment =
            packet.dont_fragment && packet.bytes.len() <= usize::from(self.config.mtu);
        if dont_fragment != flow.dont_fragment {
            flow.dont_fragment = dont_fragment;
            sys::set_dont_fragment(flow.fd.as_fd(), flow.key.remote.is_ipv4(), dont_fragment);
        }
        match send(&flow.fd, payload, crate::sys::NO_SIGNAL) {
            // A full socket buffer drops datagrams, as any router does.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => {}
            // An earlier packet's error comes first; then this one can be sent.
            Err(error) => {
                let guest = flow.key.guest;
                let path = sys::path_mtu(flow.fd.as_fd(), flow.key.remote.is_ipv4());
                let retry = error != Errno::MSGSIZE
                    && send(&flow.fd, payload, crate::sys::NO_SIGNAL).is_ok();
                if !retry {
                    self.send_unreachable(guest, packet, unreachable_for(error, path));
                }
            }
        }
    }

    /// The host's socket has news.
    pub(crate) fn datagram_event(&mut self, index: usize) {
        if let Some(flow) = self.datagrams.slab.get_mut(index) {
            flow.readable = true;
            if !flow.listed {
                flow.listed = true;
                self.ready.push_back(FlowRef::Datagram(index));
            }
        }
    }

    /// There is room again for a flow that waited for it.
    pub(crate) fn datagram_resume(&mut self, index: usize) {
        if let Some(flow) = self.datagrams.slab.get_mut(index) {
            flow.waiting = false;
        }
        self.datagram_event(index);
    }

    /// Gives a flow its turn.
    pub(crate) fn datagram_turn(&mut self, index: usize) {
        let mut buffer = std::mem::take(&mut self.datagrams.buffer);
        buffer.resize(MAX_DATAGRAM, 0);
        let mut more = true;
        if let Some(flow) = self.datagrams.slab.get_mut(index) {
            flow.listed = false;
        }
        for _ in 0..TURN {
            if !self.datagram_receive(index, &mut buffer) {
                more = false;
                break;
            }
        }
        self.datagrams.buffer = buffer;
        if more {
            self.datagram_event(index);
        }
    }

    /// Delivers one datagram; false when there is none, or no room for it.
    fn datagram_receive(&mut self, index: usize, buffer: &mut [u8]) -> bool {
        let Some(flow) = self.datagrams.slab.get_mut(index) else {
            return false;
        };
        let key = flow.key;
        let Some(guest) = self.guests.get_mut(key.guest) else {
            return false;
        };
        if !guest.outbox.has_room() {
            if !flow.waiting {
                flow.waiting = true;
                guest.waiting.push_back(FlowRef::Datagram(index));
            }
            return false;
        }
        match recv(&flow.fd, &mut *buffer, RecvFlags::empty()) {
            Ok((length, _)) => {
                flow.used = self.now;
                flow.answered = true;
                flow.to_guest += length as u64;
                let raw = flow.raw;
                let data = buffer.get(..length).unwrap_or_default();
                if key.echo {
                    self.echo_deliver(&key, raw, data);
                } else {
                    self.send_udp(key.guest, key.remote, key.local, data);
                }
                true
            }
            Err(Errno::AGAIN) => {
                flow.readable = false;
                false
            }
            Err(Errno::INTR) => true,
            Err(error) => {
                let last = std::mem::take(&mut flow.last);
                let path = sys::path_mtu(flow.fd.as_fd(), key.remote.is_ipv4());
                if let Some(packet) = IpPacket::parse_quoted(&last) {
                    self.send_unreachable(key.guest, &packet, unreachable_for(error, path));
                }
                true
            }
        }
    }

    fn echo_deliver(&mut self, key: &DatagramKey, raw: bool, data: &[u8]) {
        let IpAddr::V4(_) = key.remote.ip() else {
            return self.echo_reply(key, raw, data, 129);
        };
        let header = data.first().map_or(0, |byte| usize::from(byte & 15) * 4);
        let message = if raw {
            data.get(header..).unwrap_or_default()
        } else {
            data
        };
        self.echo_reply(key, raw, message, 0);
    }

    fn echo_reply(&mut self, key: &DatagramKey, raw: bool, message: &[u8], reply: u8) {
        let Some((head, rest)) = message.split_first_chunk::<8>() else {
            return;
        };
        let [kind, _, _, _, id_high, id_low, seq_high, seq_low] = *head;
        let identifier = u16::from_be_bytes([id_high, id_low]);
        if kind != reply || raw && identifier != key.local.port() {
            return;
        }
        let sequence = u16::from_be_bytes([seq_high, seq_low]);
        let (src, dst) = (key.remote.ip(), key.local);
        self.send_echo_reply(key.guest, src, dst, sequence, rest);
    }

    /// A flow's time may be over.
    pub(crate) fn datagram_timer(&mut self, index: usize) {
        let Some(flow) = self.datagrams.slab.get(index) else {
            return;
        };
        let end = flow.used + flow.lifetime();
        if end <= self.now {
            self.datagram_remove(index);
        } else {
            self.timers.add(end, Deadline::Datagram(index));
        }
    }

    /// Ends the longest unused flow of a guest. False when it has none.
    pub(crate) fn datagram_evict(&mut self, guest: usize) -> bool {
        let Some(state) = self.guests.get_mut(guest) else {
            return false;
        };
        // Looking at some of them is enough: those in use go to the back.
        for _ in 0..32 {
            let Some(FlowRef::Datagram(index)) = state.datagram_flows.pop_front() else {
                return false;
            };
            let fresh = self.datagrams.slab.get(index).is_some_and(|flow| {
                self.now.duration_since(flow.used) < Duration::from_secs(1) && flow.answered
            });
            state.datagram_flows.push_back(FlowRef::Datagram(index));
            if !fresh {
                self.datagram_remove(index);
                return true;
            }
        }
        match state.datagram_flows.front() {
            Some(FlowRef::Datagram(index)) => {
                let index = *index;
                self.datagram_remove(index);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn datagram_remove(&mut self, index: usize) {
        let Some(flow) = self.datagrams.slab.try_remove(index) else {
            return;
        };
        self.datagrams.by_key.remove(&flow.key);
        self.deregister(flow.fd.as_raw_fd());
        if let Some(guest) = self.guests.get_mut(flow.key.guest) {
            guest
                .datagram_flows
                .retain(|other| *other != FlowRef::Datagram(index));
        }
        drop(flow);
        self.descriptor_freed();
    }

    /// What is to be told about every flow of a guest.
    pub(crate) fn datagram_flow_infos(&self, guest: usize) -> Vec<FlowInfo> {
        let flows = self
            .datagrams
            .slab
            .iter()
            .filter(|(_, flow)| flow.key.guest == guest);
        flows
            .map(|(_, flow)| FlowInfo {
                protocol: if flow.key.echo {
                    Protocol::Icmp
                } else {
                    Protocol::Udp
                },
                direction: Direction::Out,
                guest: flow.key.local,
                remote: flow.key.remote,
                state: if flow.answered {
                    "answered"
                } else {
                    "unanswered"
                }
                .to_owned(),
                to_guest: flow.to_guest,
                from_guest: flow.from_guest,
            })
            .collect()
    }

    /// Ends a flow that was told about.
    pub(crate) fn datagram_remove_by(&mut self, guest: usize, info: &FlowInfo) {
        let key = DatagramKey {
            guest,
            local: info.guest,
            remote: info.remote,
            echo: info.protocol == Protocol::Icmp,
        };
        if let Some(index) = self.datagrams.by_key.get(&key).copied() {
            self.datagram_remove(index);
        }
    }

    /// Every datagram flow of a guest.
    pub(crate) fn datagram_flows_of(&self, guest: usize) -> Vec<usize> {
        let flows = self.datagrams.slab.iter();
        flows
            .filter(|(_, flow)| flow.key.guest == guest)
            .map(|(index, _)| index)
            .collect()
    }
}

fn unreachable_for(error: Errno, path_mtu: Option<u16>) -> Unreachable {
    match error {
        Errno::CONNREFUSED => Unreachable::Port,
        Errno::NETUNREACH | Errno::NETDOWN => Unreachable::Network,
        Errno::ACCESS | Errno::PERM => Unreachable::Prohibited,
        Errno::MSGSIZE => Unreachable::TooBig(path_mtu.unwrap_or(1280)),
        _ => Unreachable::Host,
    }
}
