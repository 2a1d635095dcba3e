//! What guests send to the gateway: its own services, and packets for the outside.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::Engine;
use super::frames::ndp_message;
use crate::config::GATEWAY_MAC;
use crate::dns::forwarder::Asker;
use crate::services::arp::Arp;
use crate::services::dhcp::{DhcpRequest, Lease};
use crate::services::ndp::{self, Advertised, NdpMessage};
use crate::wire::build::Unreachable;
use crate::wire::frame::Offload;
use crate::wire::ip::{EchoRequest, IpPacket, UdpDatagram};
use crate::wire::{ETHERNET, ethertype, protocol};
use crate::{Direction, Protocol};

impl Engine {
    /// Takes an ARP message.
    pub(crate) fn arp(&mut self, index: usize, content: &[u8]) {
        let Some(arp) = Arp::parse(content) else {
            return self.malformed(index);
        };
        let ours = [self.config.gateway4(), self.config.host4()].contains(&Some(arp.target));
        if !arp.request || !ours {
            return;
        }
        let reply = arp.reply(GATEWAY_MAC);
        self.send_built(index, |builder| {
            let size = ETHERNET + reply.len();
            let mut frame = builder
                .pool
                .frame(size, builder.to, builder.from, ethertype::ARP);
            crate::bytes::put(frame.ip_mut(), 0, &reply);
            frame
        });
    }

    /// Takes an IP packet.
    pub(crate) fn ip(&mut self, index: usize, content: &[u8], offload: &Offload) {
        let Some(packet) = IpPacket::parse(content) else {
            return self.malformed(index);
        };
        if packet.fragment.is_some() {
            let Some(guest) = self.guests.get_mut(index) else {
                return;
            };
            if let Some(whole) = guest.reassembly.add(&packet, self.now)
                && let Some(packet) = IpPacket::parse(&whole)
            {
                self.whole_packet(index, &packet, false);
            }
            return;
        }
        self.whole_packet(index, &packet, offload.needs_checksum || offload.checked);
    }

    fn whole_packet(&mut self, index: usize, packet: &IpPacket<'_>, vouched: bool) {
        if !vouched && !packet.is_sound() {
            return self.malformed(index);
        }
        if let Some(message) = ndp_message(packet).filter(|_| packet.hop_limit == 255) {
            return self.neighbor(index, packet, message);
        }
        let broadcast = packet.dst == IpAddr::V4(Ipv4Addr::BROADCAST);
        if broadcast || packet.dst.is_multicast() || packet.src.is_unspecified() {
            if packet.protocol == protocol::UDP {
                self.dhcp(index, packet);
            }
            return;
        }
        if self.is_gateway(packet.dst) {
            return self.gateway_packet(index, packet);
        }
        if packet.hop_limit <= 1 {
            return self.send_unreachable(index, packet, Unreachable::HopLimit);
        }
        if self.is_inside(packet.dst) && !self.is_host_alias(packet.dst) {
            // Guests reach one another directly, or not at all.
            return self.send_unreachable(index, packet, Unreachable::Host);
        }
        match packet.protocol {
            protocol::TCP => self.tcp_packet(index, packet),
            protocol::UDP => match UdpDatagram::parse(packet) {
                Some(datagram) => self.udp_packet(index, packet, &datagram),
                None => self.malformed(index),
            },
            protocol::ICMP | protocol::ICMPV6 => {
                if let Some(echo) = EchoRequest::parse(packet) {
                    self.echo_packet(index, packet, &echo);
                }
            }
            // Nothing else has sockets that need no privilege.
            _ => self.send_unreachable(index, packet, Unreachable::Prohibited),
        }
    }

    pub(crate) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.config.gateway4() == Some(v4),
            IpAddr::V6(v6) => self.config.gateway6() == Some(v6) || v6 == ndp::ROUTER,
        }
    }

    fn gateway_packet(&mut self, index: usize, packet: &IpPacket<'_>) {
        match packet.protocol {
            protocol::TCP => self.tcp_packet(index, packet),
            protocol::UDP => self.udp_to_gateway(index, packet),
            protocol::ICMP | protocol::ICMPV6 => {
                if let Some(echo) = EchoRequest::parse(packet) {
                    let to = SocketAddr::new(packet.src, echo.identifier);
                    self.send_echo_reply(index, packet.dst, to, echo.sequence, echo.data);
                }
            }
            _ => self.send_unreachable(index, packet, Unreachable::Port),
        }
    }

    fn udp_to_gateway(&mut self, index: usize, packet: &IpPacket<'_>) {
        let Some(datagram) = UdpDatagram::parse(packet) else {
            return self.malformed(index);
        };
        match datagram.dst.port() {
            53 => {
                let asker = Asker::Udp {
                    from: datagram.src,
                    to: datagram.dst,
                };
                self.dns_query(index, asker, datagram.payload);
            }
            67 => self.dhcp(index, packet),
            _ => {
                if !self.forward_reply(index, &datagram) {
                    self.send_unreachable(index, packet, Unreachable::Port);
                }
            }
        }
    }

    fn dhcp(&mut self, index: usize, packet: &IpPacket<'_>) {
        let Some(datagram) = UdpDatagram::parse(packet) else {
            return;
        };
        if (datagram.src.port(), datagram.dst.port()) != (68, 67) || packet.src.is_ipv6() {
            return;
        }
        let Some(guest) = self.guests.get(index) else {
            return;
        };
        let (Some(address), Some(gateway)) = (guest.addresses.ipv4, self.config.gateway4()) else {
            return;
        };
        let lease = Lease {
            address,
            prefix: guest.addresses.ipv4_prefix,
            gateway,
            router: self.has_way_out(),
            mtu: self.config.mtu,
            host_name: guest.config.name.as_str(),
            search: &self.dns.servers.current().search,
        };
        let answer =
            DhcpRequest::parse(datagram.payload).and_then(|request| request.answer(&lease));
        if let Some((to, message)) = answer {
            let from = SocketAddr::new(gateway.into(), 67);
            self.send_udp(index, from, SocketAddr::new(to.into(), 68), &message);
        }
    }

    /// Whether anything lies behind the gateway.
    fn has_way_out(&self) -> bool {
        self.config.outside
    }

    fn neighbor(&mut self, index: usize, packet: &IpPacket<'_>, message: NdpMessage) {
        match message {
            NdpMessage::NeighborSolicitation { target } => {
                let ours = [
                    self.config.gateway6(),
                    self.config.host6(),
                    Some(ndp::ROUTER),
                ];
                if !ours.contains(&Some(target)) {
                    return;
                }
                // A guest that wants our address for itself hears of us by everybody's.
                let to = if packet.src.is_unspecified() {
                    ndp::ALL_NODES.into()
                } else {
                    packet.src
                };
                let (head, rest) = ndp::neighbor_advertisement(target, GATEWAY_MAC);
                self.send_built(index, |builder| {
                    builder.icmp(target.into(), to, head, &rest)
                });
            }
            NdpMessage::RouterSolicitation => {
                let to = (!packet.src.is_unspecified()).then_some(packet.src);
                self.advertise(index, to);
            }
            NdpMessage::NeighborAdvertisement { .. }
            | NdpMessage::RouterAdvertisement
            | NdpMessage::Redirect => {}
        }
    }

    /// Tells a guest of the gateway and its prefix.
    pub(crate) fn advertise(&mut self, index: usize, to: Option<IpAddr>) {
        let (Some(network), Some(gateway)) = (self.config.ipv6, self.config.gateway6()) else {
            return;
        };
        let IpAddr::V6(prefix) = network.address() else {
            return;
        };
        let autonomous = self
            .guests
            .get(index)
            .is_some_and(|guest| guest.config.ipv6.is_none());
        let (head, rest) = ndp::router_advertisement(&Advertised {
            mac: GATEWAY_MAC,
            prefix,
            mtu: self.config.mtu,
            dns: Some(gateway),
            router: self.has_way_out(),
            autonomous,
        });
        let to = to.unwrap_or(IpAddr::V6(ndp::ALL_NODES));
        self.send_built(index, |builder| {
            builder.icmp(ndp::ROUTER.into(), to, head, &rest)
        });
    }

    /// Whether a client may come in through a forward.
    pub(crate) fn admits(
        &mut self,
        guest: usize,
        protocol: Protocol,
        local: SocketAddr,
        client: SocketAddr,
    ) -> bool {
        self.judge(guest, Direction::In, protocol, local, client)
            .action
            == crate::Action::Allow
    }
}
