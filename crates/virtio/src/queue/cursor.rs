//! Walking over the buffers of a chain.

use vm_memory::{Bytes, GuestAddress};

use super::{QueueError, Segment};
use crate::GuestRam;

/// The buffers of a chain ended before the data did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShortBuffer {
    /// Fewer bytes were left than needed.
    #[error("the buffers are {0} bytes too short")]
    Short(usize),
    /// The memory behind a buffer is gone.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// A position in the readable or the writable half of a [`Chain`](super::Chain).
#[derive(Debug, Clone)]
pub struct Cursor<'c> {
    segments: &'c [Segment],
    /// Bytes of the first segment that are behind the position.
    offset: u32,
    left: u64,
}

impl<'c> Cursor<'c> {
    /// Starts at the first byte of `segments`.
    pub fn new(segments: &'c [Segment]) -> Self {
        let left = segments.iter().map(|segment| u64::from(segment.len)).sum();
        Self {
            segments,
            offset: 0,
            left,
        }
    }

    /// Bytes ahead.
    pub fn remaining(&self) -> u64 {
        self.left
    }

    /// Goes on by `count` bytes, at most to the end.
    pub fn skip(&mut self, count: u64) {
        let mut count = count.min(self.left);
        self.left -= count;
        while count > 0 {
            let Some((first, rest)) = self.segments.split_first() else {
                return;
            };
            let here = u64::from(first.len - self.offset);
            if count < here {
                self.offset += count as u32;
                return;
            }
            count -= here;
            self.segments = rest;
            self.offset = 0;
        }
    }

    /// What is ahead, cut off after `limit` bytes.
    pub fn segments(&self, limit: u64) -> impl Iterator<Item = Segment> + use<'c> {
        let mut left = limit.min(self.left);
        let mut offset = self.offset;
        self.segments.iter().map_while(move |segment| {
            let len = u64::from(segment.len - offset).min(left);
            let addr = GuestAddress(segment.addr.0 + u64::from(offset));
            offset = 0;
            left -= len;
            (len > 0).then_some(Segment {
                addr,
                len: len as u32,
            })
        })
    }

    /// Fills `buf` from the guest's memory.
    ///
    /// # Errors
    /// Fewer bytes are ahead (then nothing was read), or the memory is gone.
    pub fn read_exact(&mut self, ram: &GuestRam, buf: &mut [u8]) -> Result<(), ShortBuffer> {
        self.fits(buf.len())?;
        let mut rest = &mut *buf;
        for segment in self.segments(rest.len() as u64) {
            let (now, later) = rest.split_at_mut(segment.len as usize);
            ram.read_slice(now, segment.addr)
                .map_err(|_| QueueError::MemoryGone(segment.addr.0))?;
            rest = later;
        }
        self.skip(buf.len() as u64);
        Ok(())
    }

    /// Writes all of `buf` to the guest's memory.
    ///
    /// # Errors
    /// Fewer bytes are ahead (then nothing was written), or the memory is gone.
    pub fn write_all(&mut self, ram: &GuestRam, buf: &[u8]) -> Result<(), ShortBuffer> {
        self.fits(buf.len())?;
        let mut rest = buf;
        for segment in self.segments(rest.len() as u64) {
            let (now, later) = rest.split_at(segment.len as usize);
            ram.write_slice(now, segment.addr)
                .map_err(|_| QueueError::MemoryGone(segment.addr.0))?;
            rest = later;
        }
        self.skip(buf.len() as u64);
        Ok(())
    }

    fn fits(&self, len: usize) -> Result<(), ShortBuffer> {
        match (len as u64).checked_sub(self.left) {
            Some(missing) if missing > 0 => Err(ShortBuffer::Short(missing as usize)),
            _ => Ok(()),
        }
    }
}
