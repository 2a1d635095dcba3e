//! Reading IP packets (RFC 791, RFC 8200) and the headers in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::checksum::{Sum, pseudo_header};
use super::{protocol, tcp_flag};
use crate::bytes::{Reader, be16};

/// The most IPv6 extension headers of one packet; each is one turn of a loop.
const MAX_EXTENSIONS: usize = 8;

/// An IP packet that was checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IpPacket<'a> {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    /// The protocol of the payload, behind all extension headers.
    pub(crate) protocol: u8,
    pub(crate) hop_limit: u8,
    /// The whole packet, without padding behind it.
    pub(crate) bytes: &'a [u8],
    /// What the headers carry.
    pub(crate) payload: &'a [u8],
    pub(crate) fragment: Option<Fragment>,
    pub(crate) dont_fragment: bool,
}

/// Which part of a larger packet the payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    pub(crate) id: u32,
    /// In bytes.
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

impl<'a> IpPacket<'a> {
    /// Reads and checks a packet's headers. `None` for a malformed one.
    pub(crate) fn parse(data: &'a [u8]) -> Option<Self> {
        match data.first()? >> 4 {
            4 => Self::parse_v4(data),
            6 => Self::parse_v6(data),
            _ => None,
        }
    }

    fn parse_v4(data: &'a [u8]) -> Option<Self> {
        let header_len = usize::from(data.first()? & 15) * 4;
        let total = usize::from(be16(data, 2)?);
        let header = data.get(..header_len).filter(|header| header.len() >= 20)?;
        let bytes = data.get(..total)?;
        let payload = bytes.get(header_len..)?;
        if !Sum::default().add(header).is_sound() {
            return None;
        }
        let flags = be16(header, 6)?;
        let offset = usize::from(flags & 0x1fff) * 8;
        let more = flags & 0x2000 != 0;
        let address = |at: usize| {
            let octets: &[u8; 4] = header.get(at..)?.first_chunk()?;
            Some(IpAddr::V4(Ipv4Addr::from(*octets)))
        };
        Some(Self {
            src: address(12)?,
            dst: address(16)?,
            protocol: *header.get(9)?,
            hop_limit: *header.get(8)?,
            bytes,
            payload,
            fragment: (more || offset != 0).then_some(Fragment {
                id: be16(header, 4)?.into(),
                offset,
                more,
            }),
            dont_fragment: flags & 0x4000 != 0,
        })
    }

    fn parse_v6(data: &'a [u8]) -> Option<Self> {
        let length = usize::from(be16(data, 4)?);
        let bytes = data.get(..length.checked_add(40)?)?;
        let mut reader = Reader::new(bytes);
        reader.take(6)?;
        let mut next = reader.u8()?;
        let hop_limit = reader.u8()?;
        let src = IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?));
        let dst = IpAddr::V6(Ipv6Addr::from(reader.array::<16>()?));
        let mut fragment = None;
        for _ in 0..MAX_EXTENSIONS {
            match next {
                // Hop-by-hop options and destination options. A routing header names other
                // destinations, which no rule would have seen: it is not followed.
                0 | 60 => {
                    next = reader.u8()?;
                    let length = usize::from(reader.u8()?) * 8 + 6;
                    reader.take(length)?;
                }
                44 if fragment.is_none() => {
                    next = reader.u8()?;
                    reader.u8()?;
                    let offset = reader.u16()?;
                    let id = reader.u32()?;
                    let found = Fragment {
                        id,
                        offset: usize::from(offset & 0xfff8),
                        more: offset & 1 != 0,
                    };
                    // A first fragment that is also the last one is a whole packet (RFC 6946).
                    if found.offset != 0 || found.more {
                        fragment = Some(found);
                        break;
                    }
                }
                _ => break,
            }
        }
        Some(Self {
            src,
            dst,
            protocol: next,
            hop_limit,
            bytes,
            payload: reader.rest(),
            fragment,
            dont_fragment: true,
        })
    }

    /// The start of a packet, whose stated length is beyond it.
    pub(crate) fn parse_quoted(bytes: &'a [u8]) -> Option<Self> {
        let ipv4 = bytes.first()? >> 4 == 4;
        let address = |at: usize| {
            if ipv4 {
                bytes
                    .get(at..)?
                    .first_chunk::<4>()
                    .map(|octets| IpAddr::from(*octets))
            } else {
                bytes
                    .get(at..)?
                    .first_chunk::<16>()
                    .map(|octets| IpAddr::from(*octets))
            }
        };
        let (src, dst) = if ipv4 { (12, 16) } else { (8, 24) };
        Some(Self {
            src: address(src)?,
            dst: address(dst)?,
            protocol: 0,
            hop_limit: 0,
            bytes,
            payload: &[],
            fragment: None,
            dont_fragment: false,
        })
    }

    /// Whether the checksum of the TCP, UDP or ICMPv6 message in it is right.
    pub(crate) fn is_sound(&self) -> bool {
        match self.protocol {
            // A UDP checksum of zero over IPv4 stands for none.
            protocol::UDP if self.src.is_ipv4() && self.payload.get(6..8) == Some(&[0, 0]) => true,
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
                pseudo_header(self.src, self.dst, self.protocol, self.payload.len())
                    .add(self.payload)
                    .is_sound()
            }
            protocol::ICMP => Sum::default().add(self.payload).is_sound(),
            _ => true,
        }
    }
}

/// What NAT looks at in a TCP segment (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct TcpSegment {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) flags: u8,
    pub(crate) payload_len: usize,
}

impl TcpSegment {
    pub(crate) fn parse(packet: &IpPacket<'_>) -> Option<Self> {
        let mut reader = Reader::new(packet.payload);
        let (src, dst) = (reader.u16()?, reader.u16()?);
        let (sequence, acknowledgement) = (reader.u32()?, reader.u32()?);
        let header = usize::from(reader.u8()? >> 4) * 4;
        let flags = reader.u8()?;
        let payload_len = packet.payload.len().checked_sub(header)?;
        if header < 20 || src == 0 || dst == 0 {
            return None;
        }
        Some(Self {
            src: SocketAddr::new(packet.src, src),
            dst: SocketAddr::new(packet.dst, dst),
            sequence,
            acknowledgement,
            flags,
            payload_len,
        })
    }

    /// Whether it opens a connection.
    pub(crate) const fn opens(&self) -> bool {
        self.flags & (tcp_flag::SYN | tcp_flag::ACK | tcp_flag::RST | tcp_flag::FIN)
            == tcp_flag::SYN
    }

    pub(crate) const fn is_reset(&self) -> bool {
        self.flags & tcp_flag::RST != 0
    }
}

/// A UDP datagram (RFC 768).
#[derive(Clone, Copy, Debug)]
pub(crate) struct UdpDatagram<'a> {
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) payload: &'a [u8],
}

impl<'a> UdpDatagram<'a> {
    pub(crate) fn parse(packet: &IpPacket<'a>) -> Option<Self> {
        let mut reader = Reader::new(packet.payload);
        let (src, dst, length) = (reader.u16()?, reader.u16()?, reader.u16()?);
        let payload = packet.payload.get(8..usize::from(length))?;
        (dst != 0).then_some(Self {
            src: SocketAddr::new(packet.src, src),
            dst: SocketAddr::new(packet.dst, dst),
            payload,
        })
    }
}

/// An ICMP or ICMPv6 echo request (RFC 792, RFC 4443 section 4.1).
#[derive(Clone, Copy, Debug)]
pub(crate) struct EchoRequest<'a> {
    pub(crate) identifier: u16,
    pub(crate) sequence: u16,
    pub(crate) data: &'a [u8],
}

impl<'a> EchoRequest<'a> {
    pub(crate) fn parse(packet: &IpPacket<'a>) -> Option<Self> {
        let request = match packet.protocol {
            protocol::ICMP if packet.src.is_ipv4() => 8,
            protocol::ICMPV6 if packet.src.is_ipv6() => 128,
            _ => return None,
        };
        let mut reader = Reader::new(packet.payload);
        let (kind, code) = (reader.u8()?, reader.u8()?);
        reader.u16()?;
        let (identifier, sequence) = (reader.u16()?, reader.u16()?);
        (kind == request && code == 0).then_some(Self {
            identifier,
            sequence,
            data: reader.rest(),
        })
    }
}
