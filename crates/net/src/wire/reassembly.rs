//! Putting fragmented packets of a guest together, and cutting large ones for it
//! (RFC 791 section 3.2, RFC 8200 section 4.5, RFC 5722).

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use capsa_core::MacAddress;

use super::build::{seal_ipv4, write_ip};
use super::frame::{Frame, FramePool};
use super::ip::IpPacket;
use super::{ETHERNET, ethertype};
use crate::bytes::put;

/// Packets of one guest that wait for their missing parts; a further one takes the oldest's place.
const MAX_PACKETS: usize = 32;
/// Parts of one packet.
const MAX_PARTS: usize = 64;
const LIFETIME: Duration = Duration::from_secs(30);
const MAX_PAYLOAD: usize = 65_535 - 40;

#[derive(Debug, PartialEq, Eq, Hash, Clone, Copy)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Partial {
    since: Instant,
    parts: Vec<(usize, Vec<u8>)>,
    /// Known once the last part is there.
    total: Option<usize>,
}

/// The fragments of one guest.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    partial: HashMap<Key, Partial>,
}

impl Reassembly {
    /// Takes a fragment; returns the whole packet, without extension headers, when it was the last
    /// one missing. Parts that overlap spoil the packet: only somebody who wants two readings of
    /// one packet sends them.
    pub(crate) fn add(&mut self, packet: &IpPacket<'_>, now: Instant) -> Option<Vec<u8>> {
        let fragment = packet.fragment?;
        let key = Key {
            src: packet.src,
            dst: packet.dst,
            protocol: packet.protocol,
            id: fragment.id,
        };
        let end = fragment.offset + packet.payload.len();
        let uneven = fragment.more && !packet.payload.len().is_multiple_of(8);
        if end > MAX_PAYLOAD || uneven || packet.payload.is_empty() {
            self.partial.remove(&key);
            return None;
        }
        self.partial
            .retain(|_, partial| now.duration_since(partial.since) < LIFETIME);
        if self.partial.len() >= MAX_PACKETS && !self.partial.contains_key(&key) {
            let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.since);
            if let Some(oldest) = oldest.map(|(key, _)| *key) {
                self.partial.remove(&oldest);
            }
        }
        let partial = self.partial.entry(key).or_insert_with(|| Partial {
            since: now,
            parts: Vec::new(),
            total: None,
        });
        let repeated = |(offset, part): &(usize, Vec<u8>)| {
            *offset == fragment.offset && part == packet.payload
        };
        if partial.parts.iter().any(repeated) {
            return None;
        }
        let overlaps = partial
            .parts
            .iter()
            .any(|(offset, part)| *offset < end && fragment.offset < offset + part.len());
        let second_end = !fragment.more && partial.total.is_some();
        let beyond = partial.total.is_some_and(|total| end > total);
        if overlaps || second_end || beyond || partial.parts.len() >= MAX_PARTS {
            self.partial.remove(&key);
            return None;
        }
        if !fragment.more {
            partial.total = Some(end);
        }
        partial
            .parts
            .push((fragment.offset, packet.payload.to_vec()));
        let have: usize = partial.parts.iter().map(|(_, part)| part.len()).sum();
        if partial.total != Some(have) {
            return None;
        }
        let partial = self.partial.remove(&key)?;
        Some(join(packet, partial, have))
    }
}

fn join(packet: &IpPacket<'_>, partial: Partial, length: usize) -> Vec<u8> {
    let header = if packet.src.is_ipv4() { 20 } else { 40 };
    let mut whole = vec![0; header + length];
    for (offset, part) in partial.parts {
        put(&mut whole, header + offset, &part);
    }
    write_ip(
        &mut whole,
        packet.src,
        packet.dst,
        packet.protocol,
        packet.hop_limit,
        false,
    );
    whole
}

/// Cuts a frame whose packet is larger than `mtu` into fragments; returns one that fits as it is.
pub(crate) fn cut(frame: Frame, mtu: usize, id: u32, pool: &mut FramePool) -> Vec<Frame> {
    let ip = frame.ethernet().get(ETHERNET..).unwrap_or_default();
    if ip.len() <= mtu {
        return vec![frame];
    }
    let Some(packet) = IpPacket::parse(ip) else {
        return Vec::new();
    };
    let mac = |at: usize| {
        let bytes = frame
            .ethernet()
            .get(at..)
            .and_then(|rest| rest.first_chunk());
        MacAddress(bytes.copied().unwrap_or_default())
    };
    let ipv4 = packet.src.is_ipv4();
    let (header, kind) = if ipv4 {
        (20, ethertype::IPV4)
    } else {
        (48, ethertype::IPV6)
    };
    let room = mtu.saturating_sub(header) & !7;
    if room == 0 {
        return Vec::new();
    }
    let count = packet.payload.len().div_ceil(room);
    let mut pieces = Vec::with_capacity(count);
    for (index, part) in packet.payload.chunks(room).enumerate() {
        let mut piece = pool.frame(ETHERNET + header + part.len(), mac(0), mac(6), kind);
        let out = piece.ip_mut();
        let more = index + 1 < count;
        let offset = u16::try_from(index * room).unwrap_or_default();
        let proto = if ipv4 { packet.protocol } else { 44 };
        write_ip(out, packet.src, packet.dst, proto, packet.hop_limit, false);
        if ipv4 {
            put(out, 4, &(id as u16).to_be_bytes());
            put(
                out,
                6,
                &((offset / 8) | (u16::from(more) << 13)).to_be_bytes(),
            );
            seal_ipv4(out);
        } else {
            put(out, 40, &[packet.protocol, 0]);
            put(out, 42, &(offset | u16::from(more)).to_be_bytes());
            put(out, 44, &id.to_be_bytes());
        }
        put(out, header, part);
        pieces.push(piece);
    }
    pool.recycle(frame);
    pieces
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::wire::build::Builder;
    use crate::wire::ip::UdpDatagram;

    fn pieces(src: &str, dst: &str, payload: &[u8]) -> Vec<Vec<u8>> {
        let mut pool = FramePool::default();
        let mac = MacAddress([2; 6]);
        let (src, dst): (SocketAddr, SocketAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let frame = Builder {
            pool: &mut pool,
            to: mac,
            from: mac,
        }
        .udp(src, dst, payload);
        let pieces = cut(frame, 1500, 77, &mut pool);
        pieces
            .iter()
            .map(|piece| piece.ethernet()[ETHERNET..].to_vec())
            .collect()
    }

    fn assemble(pieces: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut reassembly = Reassembly::default();
        let mut whole = None;
        for piece in pieces {
            whole = whole.or(reassembly.add(&IpPacket::parse(piece).unwrap(), Instant::now()));
        }
        whole
    }

    #[test]
    fn cut_packets_come_together_in_any_order() {
        let payload: Vec<u8> = (0..20_000u32).map(|n| n as u8).collect();
        for (src, dst) in [
            ("10.0.2.1:53", "10.0.2.3:999"),
            ("[fd00::1]:53", "[fd00::3]:999"),
        ] {
            let mut pieces = pieces(src, dst, &payload);
            assert!(pieces.len() > 13 && pieces.iter().all(|piece| piece.len() <= 1500));
            pieces.reverse();
            pieces.push(pieces[3].clone());
            pieces.rotate_left(4);
            let whole = assemble(&pieces).unwrap();
            let packet = IpPacket::parse(&whole).unwrap();
            assert!(packet.is_sound() && packet.fragment.is_none());
            assert_eq!(UdpDatagram::parse(&packet).unwrap().payload, payload);
        }
    }

    #[test]
    fn overlapping_fragments_spoil_the_packet() {
        let mut pieces = pieces("10.0.2.1:53", "10.0.2.3:999", &[9; 4000]);
        let mut other = pieces[1].clone();
        other[100] ^= 1;
        pieces.insert(2, other);
        assert_eq!(assemble(&pieces), None);
    }

    #[test]
    fn unfinished_packets_are_bounded() {
        let mut reassembly = Reassembly::default();
        let piece = pieces("10.0.2.1:53", "10.0.2.3:999", &[9; 4000]).remove(0);
        for id in 0..1000u16 {
            let mut piece = piece.clone();
            put(&mut piece, 4, &id.to_be_bytes());
            seal_ipv4(&mut piece);
            reassembly.add(&IpPacket::parse(&piece).unwrap(), Instant::now());
        }
        assert!(reassembly.partial.len() <= MAX_PACKETS);
    }
}
