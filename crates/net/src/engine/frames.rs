//! Frames from guests: whose they are, and where they go.

use std::net::{IpAddr, Ipv6Addr};

use capsa_core::MacAddress;

use super::{Engine, timers::Deadline};
use crate::bytes::be16;
use crate::config::GATEWAY_MAC;
use crate::link::Batch;
use crate::services::arp::Arp;
use crate::services::ndp::{self, NdpMessage};
use crate::wire::frame::{Offload, SegmentKind};
use crate::wire::ip::IpPacket;
use crate::wire::{ETHERNET, VNET, ethertype, protocol};

impl Engine {
    /// Reads a batch of frames from a guest.
    pub(crate) fn guest_turn(&mut self, index: usize) {
        let Some(mut arena) = self.take_arena() else {
            return;
        };
        let batch = self.receive(index, &mut arena);
        match batch {
            Batch::Frames(count) => {
                for slot in arena.0.iter_mut().take(count) {
                    let whole = !slot.truncated;
                    let bytes = slot
                        .bytes
                        .get_mut(..slot.len)
                        .filter(|_| whole)
                        .unwrap_or_default();
                    self.frame_arrived(index, bytes);
                }
                self.list_incoming(index);
            }
            Batch::Empty => {}
            Batch::Closed => self.link_closed(index),
        }
        self.return_arena(arena);
        self.release_held(index);
    }

    fn receive(&mut self, index: usize, arena: &mut crate::link::Arena) -> Batch {
        let most = self.config.limits.frame_queue as usize;
        let Some(guest) = self.guests.get_mut(index) else {
            return Batch::Empty;
        };
        guest.listed = false;
        // What the link's conditions hold back is bounded: the guest waits.
        if guest.inbox.cost > most {
            return Batch::Empty;
        }
        match &mut guest.link {
            Some(link) => link.receive(arena),
            None => Batch::Empty,
        }
    }

    /// A frame came out of the socket.
    pub(super) fn frame_arrived(&mut self, index: usize, bytes: &mut [u8]) {
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        if guest
            .link
            .as_mut()
            .is_some_and(|link| link.take_offer(bytes))
        {
            return;
        }
        guest.counters.frames_from += 1;
        guest.counters.bytes_from += bytes.len().saturating_sub(VNET) as u64;
        if let Some(capture) = &mut self.capture {
            capture.frame(index, true, bytes.get(VNET..).unwrap_or_default());
        }
        if guest.inbox.shaper.is_ideal() && guest.inbox.held.is_empty() {
            self.frame(index, bytes);
        } else {
            guest.inbox.push(bytes, self.now);
        }
    }

    /// Takes the frames whose time on the link is over.
    fn release_held(&mut self, index: usize) {
        while let Some(mut frame) = self
            .guests
            .get_mut(index)
            .and_then(|guest| guest.inbox.pop(self.now))
        {
            self.frame(index, &mut frame);
        }
        let Some(guest) = self.guests.get_mut(index) else {
            return;
        };
        if let Some((at, _)) = guest.inbox.held.front()
            && guest.link_timer.is_none_or(|timer| *at < timer)
        {
            guest.link_timer = Some(*at);
            self.timers.add(*at, Deadline::Link(index));
        }
    }

    /// Takes a frame: virtio-net header, Ethernet header, content.
    fn frame(&mut self, index: usize, bytes: &mut [u8]) {
        let offload = Offload::read(bytes);
        let Some(ethernet) = bytes
            .get(VNET..)
            .filter(|ethernet| ethernet.len() > ETHERNET)
        else {
            return self.malformed(index);
        };
        let mac = |at: usize| {
            ethernet
                .get(at..)
                .and_then(|rest| rest.first_chunk())
                .copied()
                .map(MacAddress)
        };
        let (Some(dst), Some(src), Some(kind)) = (mac(0), mac(6), be16(ethernet, 12)) else {
            return self.malformed(index);
        };
        if offload.kind == SegmentKind::Unknown {
            return self.malformed(index);
        }
        let own = self
            .guests
            .get(index)
            .is_some_and(|guest| guest.addresses.mac == src);
        let content = ethernet.get(ETHERNET..).unwrap_or_default();
        if !own || !self.source_is_own(index, kind, content) {
            if let Some(guest) = self.guests.get_mut(index) {
                guest.counters.spoofed += 1;
            }
            return;
        }
        let group = dst.0[0] & 1 == 1;
        if self.config.peers && (group || dst != GATEWAY_MAC) {
            self.switch(index, dst, group, kind, bytes);
        }
        if !group && dst != GATEWAY_MAC {
            return;
        }
        let Some(content) = bytes.get(VNET + ETHERNET..) else {
            return;
        };
        match kind {
            ethertype::ARP => self.arp(index, content),
            ethertype::IPV4 | ethertype::IPV6 => self.ip(index, content, &offload),
            _ => {}
        }
    }

    pub(crate) fn malformed(&mut self, index: usize) {
        if let Some(guest) = self.guests.get_mut(index) {
            guest.counters.malformed += 1;
        }
    }

    /// Whether a guest speaks for itself: nobody else's address is in the frame as its own.
    fn source_is_own(&mut self, index: usize, kind: u16, content: &[u8]) -> bool {
        let network6 = self.config.ipv6;
        let taken = |address: Ipv6Addr| {
            let others = self.guests.iter().filter(|(other, _)| *other != index);
            let by_gateway = [
                self.config.gateway6(),
                self.config.host6(),
                Some(ndp::ROUTER),
            ];
            by_gateway.contains(&Some(address))
                || others
                    .into_iter()
                    .any(|(_, guest)| guest.has(address.into()))
        };
        let own6 = |address: IpAddr| matches!(address, IpAddr::V6(v6) if !v6.is_unspecified() && taken(v6));
        match kind {
            ethertype::ARP => {
                let Some(arp) = Arp::parse(content) else {
                    return false;
                };
                let Some(guest) = self.guests.get_mut(index) else {
                    return false;
                };
                let probe = arp.sender.is_unspecified() && arp.request;
                arp.sender_mac == guest.addresses.mac
                    && (probe || guest.owns(arp.sender.into(), None))
            }
            ethertype::IPV4 | ethertype::IPV6 => {
                let Some(packet) = IpPacket::parse(content) else {
                    return true;
                }; // counted as malformed
                if packet.src.is_ipv4() != (kind == ethertype::IPV4) || own6(packet.src) {
                    return false;
                }
                if let Some(message) = ndp_message(&packet) {
                    let forbidden = match message {
                        NdpMessage::NeighborAdvertisement { target } => taken(target),
                        NdpMessage::RouterAdvertisement | NdpMessage::Redirect => true,
                        _ => false,
                    };
                    if forbidden {
                        return false;
                    }
                }
                let Some(guest) = self.guests.get_mut(index) else {
                    return false;
                };
                // An address is being asked for: DHCP, duplicate address detection.
                packet.src.is_unspecified() || guest.owns(packet.src, network6)
            }
            _ => true,
        }
    }

    /// Passes a frame on to the guests that it is for.
    fn switch(&mut self, index: usize, dst: MacAddress, group: bool, kind: u16, bytes: &[u8]) {
        let others = self.guests.iter().filter(|(other, guest)| {
            *other != index && guest.link.is_some() && (group || guest.addresses.mac == dst)
        });
        let others: Vec<usize> = others.map(|(other, _)| other).collect();
        // Only the network itself gives addresses out, and other protocols stay off the switch.
        let passes = matches!(kind, ethertype::ARP | ethertype::IPV4 | ethertype::IPV6);
        if others.is_empty() || !passes || group && is_dhcp(bytes) {
            return;
        }
        for other in others {
            let frame = self.pool.copy(bytes);
            if let Some(guest) = self.guests.get_mut(other) {
                guest.outbox.push(frame, self.now, &mut self.pool);
            }
            self.mark_guest(other);
        }
    }
}

/// Neighbour discovery, if that is what a packet is. RFC 4861 has them come with the highest hop
/// limit, but one that does not must not pass the switch either.
pub(crate) fn ndp_message(packet: &IpPacket<'_>) -> Option<NdpMessage> {
    (packet.protocol == protocol::ICMPV6 && packet.fragment.is_none())
        .then(|| NdpMessage::parse(packet.payload))
        .flatten()
}

fn is_dhcp(bytes: &[u8]) -> bool {
    let Some(packet) = bytes.get(VNET + ETHERNET..).and_then(IpPacket::parse) else {
        return false;
    };
    packet.protocol == protocol::UDP && matches!(be16(packet.payload, 2), Some(67 | 68 | 546 | 547))
}
