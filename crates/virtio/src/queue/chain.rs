//! Reading descriptor chains (§2.7.5), trusting nothing in them.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::QueueError;
use crate::GuestRam;

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
pub(super) const DESCRIPTOR_SIZE: u64 = 16;

/// Longest indirect table accepted. A driver could otherwise make the device hold 2^28 segments for one request.
pub const MAX_CHAIN_DESCRIPTORS: u32 = 1024;

/// A piece of guest memory, checked to lie inside it when its chain was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub addr: GuestAddress,
    /// Length in bytes, not zero.
    pub len: u32,
}

/// One request: the buffers that the device may read, then those that it may write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
    readable_len: u32,
    writable_len: u32,
}

impl Chain {
    /// The number that hands this chain back, see [`Virtqueue::push`](super::Virtqueue::push).
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the device may read, in order.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or(&[])
    }

    /// What the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or(&[])
    }

    /// Bytes in [`readable`](Self::readable).
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    pub(super) fn read(
        ram: &GuestRam,
        table: GuestAddress,
        size: u16,
        head: u16,
        indirect_negotiated: bool,
    ) -> Result<Self, QueueError> {
        let mut chain = Self {
            head,
            segments: Vec::with_capacity(4),
            readable: 0,
            readable_len: 0,
            writable_len: 0,
        };
        let mut table = Table {
            base: table,
            entries: u32::from(size),
            indirect: false,
        };
        let mut limit = u32::from(size);
        let mut seen = 0u32;
        let mut index = head;
        loop {
            let descriptor = table.read(ram, index)?;
            if descriptor.flags & DESC_F_INDIRECT != 0 {
                if !indirect_negotiated {
                    return Err(QueueError::Indirect("the feature was not negotiated"));
                }
                table = table.enter(&descriptor)?;
                // Direct descriptors before it count against the same limit.
                limit = table.entries.saturating_add(seen);
                index = 0;
                continue;
            }
            if seen >= limit {
                return Err(QueueError::ChainTooLong { limit });
            }
            seen += 1;
            chain.add(ram, &descriptor)?;
            if descriptor.flags & DESC_F_NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
    }

    fn add(&mut self, ram: &GuestRam, descriptor: &Descriptor) -> Result<(), QueueError> {
        let writable = descriptor.flags & DESC_F_WRITE != 0;
        if !writable && self.readable < self.segments.len() {
            return Err(QueueError::Direction);
        }
        // Linux never makes an empty descriptor, others do; it says nothing, so it is dropped.
        if descriptor.len == 0 {
            return Ok(());
        }
        let addr = GuestAddress(descriptor.addr);
        if !GuestMemoryBackend::check_range(ram, addr, descriptor.len as usize) {
            return Err(QueueError::BufferOutside {
                address: descriptor.addr,
                len: descriptor.len,
            });
        }
        let (this, other) = if writable {
            (&mut self.writable_len, self.readable_len)
        } else {
            (&mut self.readable_len, self.writable_len)
        };
        *this = this
            .checked_add(descriptor.len)
            .ok_or(QueueError::ChainTooLarge)?;
        this.checked_add(other).ok_or(QueueError::ChainTooLarge)?;
        self.segments.push(Segment {
            addr,
            len: descriptor.len,
        });
        if !writable {
            self.readable += 1;
        }
        Ok(())
    }
}

struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

struct Table {
    base: GuestAddress,
    entries: u32,
    indirect: bool,
}

impl Table {
    fn read(&self, ram: &GuestRam, index: u16) -> Result<Descriptor, QueueError> {
        if u32::from(index) >= self.entries {
            return Err(QueueError::DescriptorIndex {
                index,
                size: self.entries,
            });
        }
        let offset = u64::from(index) * DESCRIPTOR_SIZE;
        let gone = QueueError::MemoryGone(self.base.0);
        let at = self.base.0.checked_add(offset).ok_or(gone)?;
        let mut raw = [0u8; DESCRIPTOR_SIZE as usize];
        ram.read_slice(&mut raw, GuestAddress(at))
            .map_err(|_| gone)?;
        let [
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            l0,
            l1,
            l2,
            l3,
            f0,
            f1,
            n0,
            n1,
        ] = raw;
        Ok(Descriptor {
            addr: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }

    /// The table that an indirect descriptor points to (§2.7.5.3).
    fn enter(&self, descriptor: &Descriptor) -> Result<Self, QueueError> {
        if self.indirect {
            return Err(QueueError::Indirect("one table inside another"));
        }
        if descriptor.flags & DESC_F_NEXT != 0 {
            return Err(QueueError::Indirect("it has a next descriptor"));
        }
        if descriptor.len == 0 || u64::from(descriptor.len) % DESCRIPTOR_SIZE != 0 {
            return Err(QueueError::Indirect(
                "the table's length is not a multiple of 16",
            ));
        }
        let entries = descriptor.len / DESCRIPTOR_SIZE as u32;
        if entries > MAX_CHAIN_DESCRIPTORS {
            return Err(QueueError::ChainTooLong {
                limit: MAX_CHAIN_DESCRIPTORS,
            });
        }
        Ok(Self {
            base: GuestAddress(descriptor.addr),
            entries,
            indirect: true,
        })
    }
}
