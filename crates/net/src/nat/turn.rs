//! A TCP flow's turn: bytes both ways, ends of streams, resets, the server name, and its end.

use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use smoltcp::socket::tcp::State;
use smoltcp::time::Instant as StackTime;

use super::dns_stream::DnsStream;
use super::stack::{Exit, Stack};
use super::tcp::{FlowState, TcpKey, exit_of};
use super::transfer::{HostEnd, guest_ended};
use crate::control::FlowInfo;
use crate::engine::{Engine, FlowRef, timers::Deadline};
use crate::policy::{Action, MAX_LOOK, Protocol, Reason, Sniffed, sniff};
use crate::sys;

/// Packets that one flow sends before others get their turn: four megabytes with segmentation.
const TURN: usize = 64;

pub(super) struct OpenFlow {
    stack: Stack,
    pub(super) peer: Peer,
    /// Bytes of each of its two buffers.
    pub(super) buffer: u64,
    established: bool,
    /// Whether the guest's stream has ended.
    guest_ended: bool,
    /// Whether ours has.
    closed: bool,
    /// Whether the guest's first bytes wait until the server name in them was looked at.
    pub(super) check_name: bool,
}

/// What a flow leads to.
pub(super) enum Peer {
    Host(HostEnd),
    Dns(DnsStream),
}

/// How a turn ended.
enum Step {
    /// Everything was moved that could be.
    Rest,
    /// There is more.
    More,
    /// There is more, but no room for it on the way to the guest.
    NoRoom,
    /// The flow is over.
    Over { reset_host: bool },
    /// The server name was found, and is to be judged.
    Name(String),
    /// The server name cannot be read.
    Unreadable,
}

impl OpenFlow {
    pub(super) const fn new(stack: Stack, peer: Peer, buffer: u64, check_name: bool) -> Self {
        Self {
            stack,
            peer,
            buffer,
            established: false,
            guest_ended: false,
            closed: false,
            check_name,
        }
    }

    /// Takes a packet of the guest's.
    pub(super) fn take(&mut self, packet: &[u8], exit: &mut Exit<'_>, time: StackTime) {
        self.stack.ingress(packet, exit, time);
        let state = self.stack.socket().state();
        self.guest_ended |= guest_ended(state);
        if !self.established
            && !matches!(state, State::SynReceived | State::SynSent | State::Listen)
        {
            self.established = true;
            // A guest that is paused keeps its connections.
            self.stack.socket().set_timeout(None);
        }
    }

    /// Breaks the connection for the guest.
    fn abort(&mut self, exit: &mut Exit<'_>, time: StackTime) {
        self.stack.socket().abort();
        self.stack.egress(exit, time);
    }

    fn turn(&mut self, exit: &mut Exit<'_>, time: StackTime) -> Step {
        for _ in 0..TURN {
            let moved = match self.exchange() {
                Ok(moved) => moved,
                Err(Step::Over { reset_host }) => {
                    self.abort(exit, time);
                    return Step::Over { reset_host };
                }
                Err(step) => return step,
            };
            let sent = self.stack.egress(exit, time);
            if let Some(reset_host) = self.over() {
                return Step::Over { reset_host };
            }
            if !moved && !sent {
                return if exit.outbox.has_room() {
                    Step::Rest
                } else {
                    Step::NoRoom
                };
            }
        }
        Step::More
    }

    /// Moves what can be moved between stack and peer; whether that was anything.
    fn exchange(&mut self) -> Result<bool, Step> {
        let socket = self.stack.socket();
        let mut moved = false;
        if self.check_name && socket.can_recv() {
            let full = socket.recv_queue() >= socket.recv_capacity();
            match sniff(socket.peek(MAX_LOOK).unwrap_or_default()) {
                Sniffed::Nothing => self.check_name = false,
                Sniffed::Name(name) => return Err(Step::Name(name)),
                Sniffed::Unreadable => return Err(Step::Unreadable),
                Sniffed::Incomplete if full || self.guest_ended => return Err(Step::Unreadable),
                Sniffed::Incomplete => {}
            }
        }
        let held = self.check_name && socket.can_recv();
        match &mut self.peer {
            Peer::Host(host) => {
                let broken = |_| Step::Over { reset_host: true };
                if !held {
                    moved |= host.pull(socket).map_err(broken)? > 0;
                    host.pass_end(socket, self.guest_ended);
                }
                moved |= host.push(socket).map_err(broken)? > 0;
                if host.ended && !self.closed {
                    socket.close();
                    self.closed = true;
                    moved = true;
                }
            }
            Peer::Dns(dns) => {
                moved |= dns.exchange(socket);
                if dns.is_finished(self.guest_ended && !socket.can_recv()) && !self.closed {
                    socket.close();
                    self.closed = true;
                    moved = true;
                }
            }
        }
        Ok(moved)
    }

    /// Whether the flow is over, and then whether the host's peer is to get a reset.
    fn over(&mut self) -> Option<bool> {
        let socket = self.stack.socket();
        let both_ended = self.guest_ended && self.closed;
        match socket.state() {
            State::TimeWait | State::Closed if both_ended && !socket.can_recv() => {
                let shut = match &self.peer {
                    Peer::Host(host) => host.shut,
                    Peer::Dns(_) => true,
                };
                shut.then_some(false)
            }
            State::Closed if both_ended => None,
            // The guest's reset, or none of its packets for too long.
            State::Closed | State::Listen => Some(true),
            _ => None,
        }
    }
}

impl Engine {
    /// Puts a flow on the list of those that need a turn.
    pub(crate) fn tcp_list(&mut self, index: usize) {
        if let Some(flow) = self.tcp.slab.get_mut(index)
            && !flow.listed
        {
            flow.listed = true;
            self.ready.push_back(FlowRef::Tcp(index));
        }
    }

    /// Gives a flow its turn.
    pub(crate) fn tcp_turn(&mut self, index: usize) {
        let time = self.stack_time();
        let Some(flow) = self.tcp.slab.get_mut(index) else {
            return;
        };
        flow.listed = false;
        let key = flow.key;
        let FlowState::Open(open) = &mut flow.state else {
            return;
        };
        let Some(guest) = self.guests.get_mut(key.guest) else {
            return;
        };
        let mut exit = exit_of(guest, &mut self.pool, self.now);
        let step = open.turn(&mut exit, time);
        self.mark_guest(key.guest);
        match step {
            Step::Rest => {
                self.tcp_deliver_queries(index);
                self.tcp_rest(index);
            }
            Step::More => {
                self.tcp_deliver_queries(index);
                self.tcp_rest(index);
                self.tcp_list(index);
            }
            Step::NoRoom => {
                self.tcp_rest(index);
                self.tcp_wait(index);
            }
            Step::Over { reset_host } => self.tcp_remove(index, reset_host),
            Step::Name(name) => self.tcp_judge_name(index, &key, &name),
            Step::Unreadable => self.tcp_deny(index, &key, Reason::UnreadableServerName),
        }
    }

    /// The flow goes on when there is room on the way to its guest.
    fn tcp_wait(&mut self, index: usize) {
        if let Some(flow) = self.tcp.slab.get_mut(index)
            && !flow.waiting
            && let Some(guest) = self.guests.get_mut(flow.key.guest)
        {
            flow.waiting = true;
            guest.waiting.push_back(FlowRef::Tcp(index));
        }
    }

    /// There is room again for a flow that waited for it.
    pub(crate) fn tcp_resume(&mut self, index: usize) {
        if let Some(flow) = self.tcp.slab.get_mut(index) {
            flow.waiting = false;
        }
        self.tcp_list(index);
    }

    /// Sets the timer by which the flow's stack wants its next turn.
    fn tcp_rest(&mut self, index: usize) {
        let time = self.stack_time();
        let (start, now) = (self.start, self.now);
        let Some(flow) = self.tcp.slab.get_mut(index) else {
            return;
        };
        let FlowState::Open(open) = &mut flow.state else {
            return;
        };
        let Some(at) = open.stack.poll_at(time) else {
            return;
        };
        let micros = u64::try_from(at.total_micros()).unwrap_or_default();
        // What is due at once and was not sent just now waits for room, or for the peer.
        let at = start + Duration::from_micros(micros);
        if at <= now {
            return;
        }
        if flow.timer.is_none_or(|timer| at < timer) {
            flow.timer = Some(at);
            self.timers.add(at, Deadline::Tcp(index));
        }
    }

    /// A timer of the flow has come.
    pub(crate) fn tcp_timer(&mut self, index: usize, at: Instant) {
        if let Some(flow) = self.tcp.slab.get_mut(index)
            && flow.timer == Some(at)
        {
            flow.timer = None;
            self.tcp_list(index);
        }
    }

    fn tcp_judge_name(&mut self, index: usize, key: &TcpKey, name: &str) {
        let verdict = self.judge_name(key.guest, Protocol::Tcp, key.local, key.remote, name);
        if verdict.action == Action::Deny {
            return self.tcp_deny(index, key, verdict.reason);
        }
        if let Some(flow) = self.tcp.slab.get_mut(index)
            && let FlowState::Open(open) = &mut flow.state
        {
            open.check_name = false;
        }
        self.tcp_list(index);
    }

    /// Ends a flow whose server name is not allowed, unless the policy only watches.
    fn tcp_deny(&mut self, index: usize, key: &TcpKey, reason: Reason) {
        let denied = self.deny_named(key.guest, Protocol::Tcp, key.local, key.remote, reason);
        let time = self.stack_time();
        let Some(flow) = self.tcp.slab.get_mut(index) else {
            return;
        };
        let FlowState::Open(open) = &mut flow.state else {
            return;
        };
        if !denied {
            open.check_name = false;
            return self.tcp_list(index);
        }
        if let Some(guest) = self.guests.get_mut(key.guest) {
            open.abort(&mut exit_of(guest, &mut self.pool, self.now), time);
        }
        self.mark_guest(key.guest);
        self.tcp_remove(index, true);
    }

    /// Ends a flow for both sides.
    pub(crate) fn tcp_break(&mut self, index: usize) {
        let time = self.stack_time();
        if let Some(flow) = self.tcp.slab.get_mut(index)
            && let FlowState::Open(open) = &mut flow.state
            && let Some(guest) = self.guests.get_mut(flow.key.guest)
        {
            open.abort(&mut exit_of(guest, &mut self.pool, self.now), time);
        }
        self.tcp_remove(index, true);
    }

    /// Forgets a flow and frees what it held.
    pub(crate) fn tcp_remove(&mut self, index: usize, reset_host: bool) {
        let Some(flow) = self.tcp.slab.try_remove(index) else {
            return;
        };
        self.tcp.by_key.remove(&flow.key);
        let guest = self.guests.get_mut(flow.key.guest);
        let buffers = match &flow.state {
            FlowState::Open(open) => open.buffer * 2,
            FlowState::Connecting { .. } | FlowState::Vacant => 0,
        };
        if let Some(guest) = guest {
            guest.tcp_flows = guest.tcp_flows.saturating_sub(1);
            guest.tcp_buffers = guest.tcp_buffers.saturating_sub(buffers);
            if buffers == 0 {
                guest.tcp_pending.retain(|pending| *pending != index);
            }
        }
        match flow.state {
            FlowState::Connecting { fd, .. } => self.deregister(fd.as_raw_fd()),
            FlowState::Open(open) => match open.peer {
                Peer::Host(host) => {
                    self.deregister(host.fd.as_raw_fd());
                    if reset_host {
                        sys::reset_on_close(host.fd.as_fd());
                    }
                }
                Peer::Dns(_) => self.dns_forget_stream(index),
            },
            FlowState::Vacant => {}
        }
        self.descriptor_freed();
    }

    /// The DNS side of a flow, if that is what it leads to.
    pub(crate) fn tcp_dns_stream(&mut self, index: usize) -> Option<(TcpKey, &mut DnsStream)> {
        let flow = self.tcp.slab.get_mut(index)?;
        let FlowState::Open(open) = &mut flow.state else {
            return None;
        };
        match &mut open.peer {
            Peer::Dns(stream) => Some((flow.key, stream)),
            Peer::Host(_) => None,
        }
    }

    /// Whether there is such a flow.
    pub(crate) fn tcp_has(&self, key: &TcpKey) -> bool {
        self.tcp.by_key.contains_key(key)
    }

    /// Every TCP flow of a guest.
    pub(crate) fn tcp_flows_of(&self, guest: usize) -> Vec<usize> {
        let flows = self
            .tcp
            .slab
            .iter()
            .filter(|(_, flow)| flow.key.guest == guest);
        flows.map(|(index, _)| index).collect()
    }

    /// What is to be told about every flow of a guest.
    pub(crate) fn tcp_flow_infos(&mut self, guest: usize) -> Vec<FlowInfo> {
        let flows = self
            .tcp
            .slab
            .iter_mut()
            .filter(|(_, flow)| flow.key.guest == guest);
        flows
            .map(|(_, flow)| {
                let (state, to_guest, from_guest) = match &mut flow.state {
                    FlowState::Open(open) => {
                        let state = open.stack.socket().state().to_string().to_ascii_lowercase();
                        match &open.peer {
                            Peer::Host(host) => (state, host.received, host.sent),
                            Peer::Dns(_) => (state, 0, 0),
                        }
                    }
                    FlowState::Connecting { .. } | FlowState::Vacant => {
                        ("connecting".to_owned(), 0, 0)
                    }
                };
                FlowInfo {
                    protocol: Protocol::Tcp,
                    direction: flow.direction,
                    guest: flow.key.local,
                    remote: flow.key.remote,
                    state,
                    to_guest,
                    from_guest,
                }
            })
            .collect()
    }
}
