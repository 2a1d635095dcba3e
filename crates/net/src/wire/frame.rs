//! A frame on its way to a guest, and the buffers that frames are written to.

use capsa_core::MacAddress;

use super::{ETHERNET, MAX_FRAME, VNET};
use crate::bytes::{be16, put};

/// A frame in a buffer of its own: virtio-net header, Ethernet header, content. The first of them
/// says what is left to be done about checksum and segmentation; it is dropped, after that was
/// done, on links without one.
#[derive(Debug)]
pub(crate) struct Frame {
    bytes: Vec<u8>,
    len: usize,
}

impl Frame {
    /// Virtio-net header and frame.
    pub(crate) fn with_header(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The same, to be written to.
    pub(crate) fn with_header_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }

    /// The Ethernet frame.
    pub(crate) fn ethernet(&self) -> &[u8] {
        self.with_header().get(VNET..).unwrap_or_default()
    }

    /// The IP packet in it, to be written to.
    pub(crate) fn ip_mut(&mut self) -> &mut [u8] {
        self.with_header_mut()
            .get_mut(VNET + ETHERNET..)
            .unwrap_or_default()
    }

    /// What it takes up in memory.
    pub(crate) fn cost(&self) -> usize {
        self.bytes.len()
    }

    /// The virtio-net header.
    pub(crate) fn offload(&self) -> Offload {
        Offload::read(self.with_header())
    }

    pub(crate) fn set_offload(&mut self, offload: Offload) {
        offload.write(self.with_header_mut());
    }
}

/// Buffers of two sizes that are used again.
#[derive(Debug, Default)]
pub(crate) struct FramePool {
    small: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
}

const SMALL: usize = 2048;
const LARGE: usize = VNET + MAX_FRAME + 7;
const MAX_SMALL: usize = 1024;
const MAX_LARGE: usize = 64;

impl FramePool {
    /// A frame of `len` bytes with its Ethernet header, and zeroes where other headers will be.
    pub(crate) fn frame(
        &mut self,
        len: usize,
        dst: MacAddress,
        src: MacAddress,
        kind: u16,
    ) -> Frame {
        let mut frame = self.raw(len);
        let header = frame.with_header_mut();
        // Headers of IPv6 and TCP with options fit; what follows is written in full.
        if let Some(start) = header.get_mut(..(VNET + ETHERNET + 120).min(len + VNET)) {
            start.fill(0);
        }
        put(header, VNET, &dst.0);
        put(header, VNET + 6, &src.0);
        put(header, VNET + 12, &kind.to_be_bytes());
        frame
    }

    /// A copy of an Ethernet frame, with its virtio-net header before it.
    pub(crate) fn copy(&mut self, with_header: &[u8]) -> Frame {
        let mut frame = self.raw(with_header.len().saturating_sub(VNET));
        put(frame.with_header_mut(), 0, with_header);
        frame
    }

    fn raw(&mut self, len: usize) -> Frame {
        let len = len.min(MAX_FRAME) + VNET;
        let bytes = if len <= SMALL {
            self.small.pop().unwrap_or_else(|| vec![0; SMALL])
        } else {
            self.large.pop().unwrap_or_else(|| vec![0; LARGE])
        };
        Frame { bytes, len }
    }

    /// Takes a buffer back.
    pub(crate) fn recycle(&mut self, frame: Frame) {
        let (list, most) = if frame.bytes.len() == SMALL {
            (&mut self.small, MAX_SMALL)
        } else {
            (&mut self.large, MAX_LARGE)
        };
        if list.len() < most {
            list.push(frame.bytes);
        }
    }
}

/// What a virtio-net header says (virtio 1.2, section 5.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Offload {
    /// The checksum from `checksum_start` on is to be completed at `checksum_start + checksum_offset`.
    pub(crate) needs_checksum: bool,
    /// Whoever passed it on vouches for its checksums.
    pub(crate) checked: bool,
    /// How it is to be cut.
    pub(crate) kind: SegmentKind,
    /// Payload bytes of each piece.
    pub(crate) segment_size: u16,
    /// From the start of the Ethernet header.
    pub(crate) checksum_start: u16,
    /// From `checksum_start`.
    pub(crate) checksum_offset: u16,
}

/// How a frame is to be cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SegmentKind {
    #[default]
    None,
    Tcp4,
    Tcp6,
    /// Anything that no driver has negotiated here.
    Unknown,
}

impl Offload {
    pub(crate) fn read(header: &[u8]) -> Self {
        let le = |at| be16(header, at).unwrap_or_default().swap_bytes();
        let flags = header.first().copied().unwrap_or_default();
        Self {
            needs_checksum: flags & 1 != 0,
            checked: flags & 2 != 0,
            kind: match header.get(1).map(|kind| kind & 0x7f) {
                Some(0) => SegmentKind::None,
                Some(1) => SegmentKind::Tcp4,
                Some(4) => SegmentKind::Tcp6,
                _ => SegmentKind::Unknown,
            },
            segment_size: le(4),
            checksum_start: le(6),
            checksum_offset: le(8),
        }
    }

    pub(crate) fn write(self, header: &mut [u8]) {
        let kind = match self.kind {
            SegmentKind::None | SegmentKind::Unknown => 0,
            SegmentKind::Tcp4 => 1,
            SegmentKind::Tcp6 => 4,
        };
        let flags = u8::from(self.needs_checksum) | u8::from(self.checked) << 1;
        put(header, 0, &[flags, kind]);
        // Length of all headers: what lies before the payload of a TCP segment. Only a hint.
        let headers = if self.needs_checksum {
            self.checksum_start + 20
        } else {
            0
        };
        put(header, 2, &headers.to_le_bytes());
        put(header, 4, &self.segment_size.to_le_bytes());
        put(header, 6, &self.checksum_start.to_le_bytes());
        put(header, 8, &self.checksum_offset.to_le_bytes());
        put(header, 10, &1u16.to_le_bytes());
    }
}

/// What the other side of a virtio link takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accepts {
    pub(crate) checksum: bool,
    pub(crate) tcp4: bool,
    pub(crate) tcp6: bool,
}
