//! Writing frames to a guest.

use std::net::{IpAddr, SocketAddr};

use capsa_core::MacAddress;

use super::checksum::{Sum, pseudo_header};
use super::frame::{Frame, FramePool};
use super::ip::{IpPacket, TcpSegment};
use super::{ETHERNET, ethertype, protocol, tcp_flag};
use crate::bytes::put;

/// Hop limit of what the gateway sends.
const HOP_LIMIT: u8 = 64;

/// Makes frames for one guest.
pub(crate) struct Builder<'a> {
    pub(crate) pool: &'a mut FramePool,
    /// The guest's hardware address.
    pub(crate) to: MacAddress,
    /// The gateway's.
    pub(crate) from: MacAddress,
}

const fn ip_header_len(address: &IpAddr) -> usize {
    if address.is_ipv4() { 20 } else { 40 }
}

/// Writes an IP header over the first bytes of `packet`, which is as long as the packet.
pub(crate) fn write_ip(
    packet: &mut [u8],
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    hop_limit: u8,
    dont_fragment: bool,
) {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let total = u16::try_from(packet.len()).unwrap_or(u16::MAX);
            put(packet, 0, &[0x45, 0]);
            put(packet, 2, &total.to_be_bytes());
            put(packet, 4, &[0, 0]);
            put(packet, 6, if dont_fragment { &[0x40, 0] } else { &[0, 0] });
            put(packet, 8, &[hop_limit, proto, 0, 0]);
            put(packet, 12, &src.octets());
            put(packet, 16, &dst.octets());
            seal_ipv4(packet);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let length = u16::try_from(packet.len().saturating_sub(40)).unwrap_or(u16::MAX);
            put(packet, 0, &[0x60, 0, 0, 0]);
            put(packet, 4, &length.to_be_bytes());
            put(packet, 6, &[proto, hop_limit]);
            put(packet, 8, &src.octets());
            put(packet, 24, &dst.octets());
        }
        _ => {}
    }
}

/// Writes an IPv4 header's checksum.
pub(crate) fn seal_ipv4(packet: &mut [u8]) {
    put(packet, 10, &[0, 0]);
    let header = packet.get(..20).unwrap_or_default();
    let checksum = Sum::default().add(header).finish();
    put(packet, 10, &checksum);
}

/// Writes the checksum of the message behind the IP header, `at` bytes into it.
fn seal_message(packet: &mut [u8], src: IpAddr, dst: IpAddr, proto: u8, at: usize) {
    let start = ip_header_len(&src);
    put(packet, start + at, &[0, 0]);
    let message = packet.get(start..).unwrap_or_default();
    let sum = match proto {
        protocol::ICMP => Sum::default(),
        _ => pseudo_header(src, dst, proto, message.len()),
    };
    let mut checksum = sum.add(message).finish();
    if checksum == [0, 0] && proto == protocol::UDP {
        checksum = [0xff, 0xff];
    }
    put(packet, start + at, &checksum);
}

impl Builder<'_> {
    /// A frame with an IP header and `len` bytes behind it that are still to be written.
    fn packet(&mut self, src: IpAddr, dst: IpAddr, proto: u8, hop_limit: u8, len: usize) -> Frame {
        let kind = if src.is_ipv4() {
            ethertype::IPV4
        } else {
            ethertype::IPV6
        };
        let total = ip_header_len(&src) + len;
        let mut frame = self.pool.frame(ETHERNET + total, self.to, self.from, kind);
        write_ip(frame.ip_mut(), src, dst, proto, hop_limit, true);
        frame
    }

    /// A UDP datagram in one packet, however long.
    pub(crate) fn udp(&mut self, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> Frame {
        let (from, to) = (src.ip(), dst.ip());
        let mut frame = self.packet(from, to, protocol::UDP, HOP_LIMIT, 8 + payload.len());
        let ip = frame.ip_mut();
        let start = ip_header_len(&from);
        let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
        put(ip, start, &src.port().to_be_bytes());
        put(ip, start + 2, &dst.port().to_be_bytes());
        put(ip, start + 4, &length.to_be_bytes());
        put(ip, start + 8, payload);
        seal_message(ip, from, to, protocol::UDP, 6);
        frame
    }

    /// An ICMP or ICMPv6 message: type, code, the four bytes behind the checksum, and the rest.
    pub(crate) fn icmp(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        head: (u8, u8, [u8; 4]),
        rest: &[u8],
    ) -> Frame {
        let (kind, code, word) = head;
        let proto = if src.is_ipv4() {
            protocol::ICMP
        } else {
            protocol::ICMPV6
        };
        // Neighbour and router messages are taken only from a neighbour (RFC 4861).
        let hop_limit = if proto == protocol::ICMPV6 && kind >= 133 {
            255
        } else {
            HOP_LIMIT
        };
        let mut frame = self.packet(src, dst, proto, hop_limit, 8 + rest.len());
        let ip = frame.ip_mut();
        let start = ip_header_len(&src);
        put(ip, start, &[kind, code]);
        put(ip, start + 4, &word);
        put(ip, start + 8, rest);
        seal_message(ip, src, dst, proto, 2);
        frame
    }

    /// An echo reply to the guest at `dst`.
    pub(crate) fn echo_reply(
        &mut self,
        src: IpAddr,
        dst: IpAddr,
        identifier: u16,
        sequence: u16,
        data: &[u8],
    ) -> Frame {
        let [a, b] = identifier.to_be_bytes();
        let [c, d] = sequence.to_be_bytes();
        let kind = if src.is_ipv4() { 0 } else { 129 };
        self.icmp(src, dst, (kind, 0, [a, b, c, d]), data)
    }

    /// The answer to a packet that cannot be delivered, with as much of it as is customary.
    pub(crate) fn unreachable(
        &mut self,
        src: IpAddr,
        about: &IpPacket<'_>,
        error: Unreachable,
    ) -> Frame {
        let (kind, code, word) = error.code(about.src.is_ipv4());
        // RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4: not beyond the smallest MTUs.
        let most = if about.src.is_ipv4() {
            576 - 28
        } else {
            1280 - 48
        };
        let quoted = about.bytes.get(..most).unwrap_or(about.bytes);
        self.icmp(src, about.src, (kind, code, word), quoted)
    }

    /// The reset that answers a segment for which there is no connection (RFC 9293 section 3.5.2).
    pub(crate) fn reset(&mut self, segment: &TcpSegment) -> Frame {
        let (sequence, acknowledgement, flags) = if segment.flags & tcp_flag::ACK != 0 {
            (segment.acknowledgement, 0, tcp_flag::RST)
        } else {
            let length = u32::try_from(segment.payload_len).unwrap_or_default()
                + u32::from(segment.flags & tcp_flag::SYN != 0)
                + u32::from(segment.flags & tcp_flag::FIN != 0);
            let acknowledgement = segment.sequence.wrapping_add(length);
            (0, acknowledgement, tcp_flag::RST | tcp_flag::ACK)
        };
        let (src, dst) = (segment.dst, segment.src);
        let mut frame = self.packet(src.ip(), dst.ip(), protocol::TCP, HOP_LIMIT, 20);
        let ip = frame.ip_mut();
        let start = ip_header_len(&src.ip());
        put(ip, start, &src.port().to_be_bytes());
        put(ip, start + 2, &dst.port().to_be_bytes());
        put(ip, start + 4, &sequence.to_be_bytes());
        put(ip, start + 8, &acknowledgement.to_be_bytes());
        put(ip, start + 12, &[5 << 4, flags]);
        seal_message(ip, src.ip(), dst.ip(), protocol::TCP, 16);
        frame
    }
}

/// Why a packet cannot be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
    /// It is too large, and this is what fits.
    TooBig(u16),
    /// It has passed as many routers as it may.
    HopLimit,
}

impl Unreachable {
    /// Type, code and the word behind the checksum (RFC 792, RFC 1191, RFC 4443).
    const fn code(self, ipv4: bool) -> (u8, u8, [u8; 4]) {
        match (self, ipv4) {
            (Self::Network, true) => (3, 0, [0; 4]),
            (Self::Host, true) => (3, 1, [0; 4]),
            (Self::Port, true) => (3, 3, [0; 4]),
            (Self::Prohibited, true) => (3, 13, [0; 4]),
            (Self::TooBig(mtu), true) => {
                let [a, b] = mtu.to_be_bytes();
                (3, 4, [0, 0, a, b])
            }
            (Self::HopLimit, true) => (11, 0, [0; 4]),
            (Self::HopLimit, false) => (3, 0, [0; 4]),
            (Self::Network, false) => (1, 0, [0; 4]),
            (Self::Host, false) => (1, 3, [0; 4]),
            (Self::Port, false) => (1, 4, [0; 4]),
            (Self::Prohibited, false) => (1, 1, [0; 4]),
            (Self::TooBig(mtu), false) => {
                let [a, b] = mtu.to_be_bytes();
                (2, 0, [0, 0, a, b])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::{EchoRequest, UdpDatagram};

    const A: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

    fn build(run: impl FnOnce(&mut Builder<'_>) -> Frame) -> Vec<u8> {
        let mut pool = FramePool::default();
        let mut builder = Builder {
            pool: &mut pool,
            to: A,
            from: A,
        };
        run(&mut builder).ethernet()[ETHERNET..].to_vec()
    }

    #[test]
    fn built_packets_are_sound_and_read_back() {
        for (src, dst) in [
            ("10.0.2.1:53", "10.0.2.3:999"),
            ("[fd00::1]:53", "[fd00::3]:999"),
        ] {
            let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            let bytes = build(|b| b.udp(src, dst, b"hello"));
            let packet = IpPacket::parse(&bytes).unwrap();
            assert!(packet.is_sound());
            let datagram = UdpDatagram::parse(&packet).unwrap();
            assert_eq!(
                (datagram.src, datagram.dst, datagram.payload),
                (src, dst, &b"hello"[..])
            );

            let kind = if src.is_ipv4() { 8 } else { 128 };
            let bytes = build(|b| b.icmp(src.ip(), dst.ip(), (kind, 0, [0, 1, 0, 2]), b"data"));
            let packet = IpPacket::parse(&bytes).unwrap();
            assert!(packet.is_sound());
            let echo = EchoRequest::parse(&packet).unwrap();
            assert_eq!(
                (echo.identifier, echo.sequence, echo.data),
                (1, 2, &b"data"[..])
            );

            let about = IpPacket::parse(&bytes).unwrap();
            let answer = build(|b| b.unreachable(dst.ip(), &about, Unreachable::Prohibited));
            assert!(IpPacket::parse(&answer).unwrap().is_sound());
        }
    }

    #[test]
    fn reset_acknowledges_a_syn() {
        let segment = TcpSegment {
            src: "10.0.2.3:1000".parse().unwrap(),
            dst: "1.2.3.4:80".parse().unwrap(),
            sequence: u32::MAX,
            acknowledgement: 0,
            flags: tcp_flag::SYN,
            payload_len: 0,
        };
        let bytes = build(|b| b.reset(&segment));
        let packet = IpPacket::parse(&bytes).unwrap();
        assert!(packet.is_sound());
        let reset = TcpSegment::parse(&packet).unwrap();
        assert!(reset.is_reset());
        assert_eq!((reset.acknowledgement, reset.dst), (0, segment.src));
    }
}
