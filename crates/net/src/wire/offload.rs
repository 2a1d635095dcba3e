//! Finishing in software what a virtio-net header leaves to be done: checksums and TCP
//! segmentation (virtio 1.2, section 5.1.6.2).

use capsa_core::MacAddress;

use super::build::seal_ipv4;
use super::checksum::{Sum, pseudo_header};
use super::frame::{Accepts, Frame, FramePool, Offload, SegmentKind};
use super::ip::IpPacket;
use super::{ETHERNET, VNET, ethertype, protocol, tcp_flag};
use crate::bytes::{be16, put};

/// Writes the checksum that a header asks for. `ethernet` is the frame behind it. False when it
/// asks for what is not in the frame.
pub(crate) fn complete_checksum(ethernet: &mut [u8], offload: &Offload) -> bool {
    if !offload.needs_checksum {
        return true;
    }
    let start = usize::from(offload.checksum_start);
    let at = start + usize::from(offload.checksum_offset);
    let Some(covered) = ethernet
        .get(start..)
        .filter(|_| at + 2 <= ethernet.len() && start >= ETHERNET)
    else {
        return false;
    };
    // The field holds the pseudo header's sum, so it is part of what is added up.
    let mut checksum = Sum::default().add(covered).finish();
    if checksum == [0, 0] {
        checksum = [0xff, 0xff];
    }
    put(ethernet, at, &checksum);
    true
}

/// Makes a frame into what the other side takes: passes it as it is, completes its checksum, or
/// cuts it. An impossible one becomes none.
pub(crate) fn finish(
    mut frame: Frame,
    accepts: Accepts,
    pool: &mut FramePool,
    mut emit: impl FnMut(Frame),
) {
    let offload = frame.offload();
    let passes = match offload.kind {
        SegmentKind::None => !offload.needs_checksum || accepts.checksum,
        SegmentKind::Tcp4 => accepts.tcp4 && accepts.checksum,
        SegmentKind::Tcp6 => accepts.tcp6 && accepts.checksum,
        SegmentKind::Unknown => false,
    };
    if passes {
        return emit(frame);
    }
    match offload.kind {
        SegmentKind::None => {
            let bytes = frame.with_header_mut().get_mut(VNET..).unwrap_or_default();
            if complete_checksum(bytes, &offload) {
                frame.set_offload(Offload::default());
                emit(frame);
            }
        }
        SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
            segment(
                frame.ethernet(),
                offload.segment_size.into(),
                pool,
                &mut emit,
            );
            pool.recycle(frame);
        }
        SegmentKind::Unknown => pool.recycle(frame),
    }
}

/// Cuts a TCP segment into pieces of `size` bytes of payload, each complete with its checksums.
fn segment(
    ethernet: &[u8],
    size: usize,
    pool: &mut FramePool,
    emit: &mut impl FnMut(Frame),
) -> Option<()> {
    let packet = IpPacket::parse(ethernet.get(ETHERNET..)?)?;
    if packet.protocol != protocol::TCP || packet.fragment.is_some() || size == 0 {
        return None;
    }
    let tcp_header = usize::from(packet.payload.get(12)? >> 4) * 4;
    let payload = packet.payload.get(tcp_header..)?;
    let headers = packet.bytes.len().checked_sub(payload.len())?;
    let tcp_at = packet.bytes.len() - packet.payload.len();
    let template = packet.bytes.get(..headers)?;
    let sequence = u32::from_be_bytes(*packet.payload.get(4..)?.first_chunk()?);
    let flags = *packet.payload.get(13)?;
    let identification = be16(packet.bytes, 4)?;
    let mac = |at: usize| {
        ethernet
            .get(at..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .map(MacAddress)
    };
    let (dst, src) = (mac(0)?, mac(6)?);
    let ipv4 = packet.src.is_ipv4();
    let kind = if ipv4 {
        ethertype::IPV4
    } else {
        ethertype::IPV6
    };
    let count = payload.len().div_ceil(size).max(1);
    for index in 0..count {
        let part = payload.get(index * size..).unwrap_or_default();
        let part = part.get(..size).unwrap_or(part);
        let mut piece = pool.frame(ETHERNET + headers + part.len(), dst, src, kind);
        let ip = piece.ip_mut();
        put(ip, 0, template);
        put(ip, headers, part);
        let offset = u32::try_from(index * size).ok()?;
        put(ip, tcp_at + 4, &sequence.wrapping_add(offset).to_be_bytes());
        if index + 1 < count {
            put(ip, tcp_at + 13, &[flags & !(tcp_flag::FIN | tcp_flag::PSH)]);
        }
        let total = ip.len();
        if ipv4 {
            put(ip, 2, &u16::try_from(total).ok()?.to_be_bytes());
            put(
                ip,
                4,
                &identification.wrapping_add(index as u16).to_be_bytes(),
            );
            seal_ipv4(ip);
        } else {
            put(ip, 4, &u16::try_from(total - 40).ok()?.to_be_bytes());
        }
        put(ip, tcp_at + 16, &[0, 0]);
        let message = ip.get(tcp_at..)?;
        let sum = pseudo_header(packet.src, packet.dst, protocol::TCP, message.len());
        let checksum = sum.add(message).finish();
        put(ip, tcp_at + 16, &checksum);
        emit(piece);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::wire::build::write_ip;
    use crate::wire::ip::TcpSegment;

    fn large_segment(src: &str, dst: &str, payload: &[u8], pool: &mut FramePool) -> Frame {
        let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
        let header = if src.is_ipv4() { 20 } else { 40 };
        let mac = MacAddress([2; 6]);
        let kind = if src.is_ipv4() {
            ethertype::IPV4
        } else {
            ethertype::IPV6
        };
        let mut frame = pool.frame(ETHERNET + header + 20 + payload.len(), mac, mac, kind);
        let ip = frame.ip_mut();
        write_ip(ip, src, dst, protocol::TCP, 64, true);
        put(
            ip,
            header,
            &[0, 80, 1, 0, 0xff, 0xff, 0xff, 0x00, 0, 0, 0, 1, 0x50, 0x19],
        );
        put(ip, header + 20, payload);
        let partial = pseudo_header(src, dst, protocol::TCP, 20 + payload.len()).fold();
        put(ip, header + 16, &partial);
        frame.set_offload(Offload {
            needs_checksum: true,
            kind: if src.is_ipv4() {
                SegmentKind::Tcp4
            } else {
                SegmentKind::Tcp6
            },
            segment_size: 1000,
            checksum_start: (ETHERNET + header) as u16,
            checksum_offset: 16,
            checked: false,
        });
        frame
    }

    #[test]
    fn large_segment_is_cut_into_sound_ones() {
        let payload: Vec<u8> = (0..2500u32).map(|n| n as u8).collect();
        for (src, dst) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let mut pool = FramePool::default();
            let frame = large_segment(src, dst, &payload, &mut pool);
            let mut pieces = Vec::new();
            finish(frame, Accepts::default(), &mut pool, |piece| {
                pieces.push(piece)
            });
            assert_eq!(pieces.len(), 3);
            let mut data = Vec::new();
            for (index, piece) in pieces.iter().enumerate() {
                let packet = IpPacket::parse(&piece.ethernet()[ETHERNET..]).unwrap();
                assert!(packet.is_sound());
                let segment = TcpSegment::parse(&packet).unwrap();
                assert_eq!(
                    segment.sequence,
                    0xffff_ff00u32.wrapping_add(index as u32 * 1000)
                );
                assert_eq!(segment.flags & tcp_flag::FIN != 0, index == 2);
                data.extend_from_slice(&packet.payload[20..]);
            }
            assert_eq!(data, payload);
        }
    }

    #[test]
    fn checksum_outside_the_frame_is_refused() {
        let mut frame = [0; 60];
        let mut offload = Offload {
            needs_checksum: true,
            checksum_start: 34,
            checksum_offset: 16,
            ..Offload::default()
        };
        assert!(complete_checksum(&mut frame, &offload));
        offload.checksum_offset = 25;
        assert!(!complete_checksum(&mut frame, &offload));
        offload = Offload {
            checksum_start: u16::MAX,
            checksum_offset: u16::MAX,
            ..offload
        };
        assert!(!complete_checksum(&mut frame, &offload));
        offload = Offload {
            checksum_start: 0,
            checksum_offset: 0,
            ..offload
        };
        assert!(!complete_checksum(&mut frame, &offload));
    }

    #[test]
    fn checksum_is_completed_where_the_link_has_none() {
        let mut pool = FramePool::default();
        let mut frame = large_segment("10.0.0.1", "10.0.0.2", b"abc", &mut pool);
        frame.set_offload(Offload {
            kind: SegmentKind::None,
            ..frame.offload()
        });
        let mut out = Vec::new();
        finish(frame, Accepts::default(), &mut pool, |piece| {
            out.push(piece)
        });
        assert!(
            IpPacket::parse(&out[0].ethernet()[ETHERNET..])
                .unwrap()
                .is_sound()
        );
    }
}
