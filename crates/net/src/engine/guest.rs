//! What the engine keeps of one guest.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use super::FlowRef;
use super::outbox::{Inbox, Outbox, Shaper};
use crate::control::GuestCounters;
use crate::link::Link;
use crate::policy::{LearnedFlows, Pins};
use crate::wire::frame::Frame;
use crate::wire::reassembly::Reassembly;
use crate::{Cidr, GuestAddresses, GuestConfig, Limits, LinkConditions};

/// The most IPv6 addresses that a guest makes for itself (RFC 8981).
const MAX_OWN_V6: usize = 16;

pub(crate) struct Guest {
    pub(crate) config: GuestConfig,
    pub(crate) addresses: GuestAddresses,
    /// `None` before it is connected and when the other side is gone.
    pub(crate) link: Option<Link>,
    pub(crate) outbox: Outbox,
    pub(crate) inbox: Inbox,
    pub(crate) pins: Pins,
    pub(crate) learned: LearnedFlows,
    pub(crate) reassembly: Reassembly,
    pub(crate) counters: GuestCounters,
    /// Flows that have something for the guest and wait for room in its outbox.
    pub(crate) waiting: VecDeque<FlowRef>,
    /// IPv6 addresses the guest made for itself.
    pub(crate) own_v6: Vec<Ipv6Addr>,
    /// Its TCP flows, those of them that wait for a server (oldest first), and their buffers.
    pub(crate) tcp_flows: u32,
    pub(crate) tcp_pending: VecDeque<usize>,
    pub(crate) tcp_buffers: u64,
    /// Its UDP and ICMP flows, in the order of their beginning or last check.
    pub(crate) datagram_flows: VecDeque<FlowRef>,
    /// Frames that are finished and ready for the link.
    pub(crate) sending: VecDeque<Frame>,
    /// Whether it is in the list of guests with frames to be read, or of those to be sent.
    pub(crate) listed: bool,
    pub(crate) marked: bool,
    /// When the next frame is due that its link's conditions hold.
    pub(crate) link_timer: Option<Instant>,
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    // Without entropy the same frames get lost in each run, which harms nobody.
    let _ = getrandom::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

fn shapers(conditions: &LinkConditions) -> (Shaper, Shaper) {
    (
        Shaper::new(conditions, conditions.upload, seed()),
        Shaper::new(conditions, conditions.download, seed()),
    )
}

impl Guest {
    pub(crate) fn new(
        config: GuestConfig,
        addresses: GuestAddresses,
        link: Option<Link>,
        limits: &Limits,
    ) -> Self {
        let (up, down) = shapers(&config.link);
        Self {
            counters: GuestCounters::new(config.name.clone()),
            config,
            addresses,
            link,
            outbox: Outbox::new(down, limits.frame_queue as usize),
            inbox: Inbox::new(up),
            pins: Pins::default(),
            learned: LearnedFlows::default(),
            reassembly: Reassembly::default(),
            waiting: VecDeque::new(),
            own_v6: Vec::new(),
            tcp_flows: 0,
            tcp_pending: VecDeque::new(),
            tcp_buffers: 0,
            datagram_flows: VecDeque::new(),
            sending: VecDeque::new(),
            listed: false,
            marked: false,
            link_timer: None,
        }
    }

    pub(crate) fn set_conditions(&mut self, conditions: LinkConditions, now: Instant) {
        self.config.link = conditions;
        let (up, down) = shapers(&conditions);
        self.inbox.shaper = up;
        for (at, _) in &mut self.inbox.held {
            *at = (*at).min(now);
        }
        self.outbox.set_shaper(down);
    }

    /// Whether the guest may send from `address`. Remembers IPv6 addresses that it makes for itself.
    pub(crate) fn owns(&mut self, address: IpAddr, network6: Option<Cidr>) -> bool {
        match address {
            IpAddr::V4(v4) => self.addresses.ipv4 == Some(v4),
            IpAddr::V6(v6) if self.addresses.ipv6 == Some(v6) || self.own_v6.contains(&v6) => true,
            IpAddr::V6(v6) => {
                let link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
                let fixed = self.config.ipv6.is_some() && !link_local;
                let fits = link_local || network6.is_some_and(|network| network.contains(address));
                if fits && !fixed {
                    if self.own_v6.len() >= MAX_OWN_V6 {
                        self.own_v6.remove(0);
                    }
                    self.own_v6.push(v6);
                }
                fits && !fixed
            }
        }
    }

    /// Its configuration with the address that it was given.
    pub(crate) fn pinned_config(&self) -> GuestConfig {
        GuestConfig {
            ipv4: self.addresses.ipv4,
            ..self.config.clone()
        }
    }

    /// Whether `address` is one that the guest is known to have.
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.addresses.ipv4 == Some(v4),
            IpAddr::V6(v6) => self.addresses.ipv6 == Some(v6) || self.own_v6.contains(&v6),
        }
    }
}
