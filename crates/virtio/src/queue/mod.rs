//! A split virtqueue seen from the device (§2.7), with `EVENT_IDX` and indirect descriptors.
//!
//! The driver is not trusted: every index, address, length and chain is checked, nothing loops longer than the queue is
//! long, nothing panics. A queue that fails a check returns a [`QueueError`], upon which the device asks for a reset.

mod chain;
mod cursor;
mod error;
mod state;
#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

pub use self::chain::{Chain, MAX_CHAIN_DESCRIPTORS, Segment};
pub use self::cursor::{Cursor, ShortBuffer};
pub use self::error::QueueError;
pub use self::state::{QueueConfig, QueueState};
use crate::{GuestRam, Interrupt};

/// `VIRTIO_F_INDIRECT_DESC` (§6).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// `VIRTIO_F_EVENT_IDX` (§6).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// `VIRTIO_F_VERSION_1` (§6).
pub const F_VERSION_1: u64 = 1 << 32;

/// The largest queue of any device here (§2.7 allows 32768).
pub const MAX_QUEUE_SIZE: u16 = 1024;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// One virtqueue, as the device uses it.
///
/// A queue that the driver did not set up is there too, never has a chain, and takes none back.
#[derive(Debug)]
pub struct Virtqueue {
    index: u16,
    config: QueueConfig,
    event_idx: bool,
    indirect: bool,
    next_available: u16,
    next_used: u16,
    /// The available index as last read: entries before it need no further look at the ring's index.
    known_available: u16,
    /// The used index at which the driver was last considered for a signal.
    signalled_used: Option<u16>,
}

impl Virtqueue {
    /// Takes a queue over from its transport.
    ///
    /// `features` are the negotiated ones.
    ///
    /// # Errors
    /// Size, alignment or place of a ring that is ready are not as §2.7 asks for.
    pub fn new(
        index: u16,
        config: QueueConfig,
        max_size: u16,
        features: u64,
        ram: &GuestRam,
    ) -> Result<Self, QueueError> {
        if config.ready {
            validate(&config, max_size, ram)?;
        }
        Ok(Self {
            index,
            config,
            event_idx: features & F_EVENT_IDX != 0,
            indirect: features & F_INDIRECT_DESC != 0,
            next_available: 0,
            next_used: 0,
            known_available: 0,
            signalled_used: None,
        })
    }

    /// Puts a queue back to where [`state`](Self::state) found it.
    pub fn set_position(&mut self, next_available: u16, next_used: u16) {
        self.next_available = next_available;
        self.known_available = next_available;
        self.next_used = next_used;
        self.signalled_used = None;
    }

    /// The queue's set-up and position. Chains taken but not handed back are not part of it.
    pub fn state(&self) -> QueueState {
        QueueState {
            config: self.config,
            next_available: self.next_available,
            next_used: self.next_used,
        }
    }

    /// The queue's number in its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Number of entries.
    pub fn size(&self) -> u16 {
        self.config.size
    }

    /// Whether the driver set this queue up.
    pub fn is_ready(&self) -> bool {
        self.config.ready
    }

    /// Takes the next chain that the driver made available.
    ///
    /// # Errors
    /// The ring or the chain is broken.
    pub fn pop(&mut self, ram: &GuestRam) -> Result<Option<Chain>, QueueError> {
        if !self.has_available(ram)? {
            return Ok(None);
        }
        let slot = self.slot(self.next_available);
        let head: u16 = self.load(ram, self.config.available, 4 + 2 * slot, Ordering::Relaxed)?;
        let chain = Chain::read(
            ram,
            GuestAddress(self.config.descriptors),
            self.config.size,
            head,
            self.indirect,
        )?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Gives the chain that was popped last back to the available ring, as if it had not been taken.
    pub fn undo_pop(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Whether [`pop`](Self::pop) would find a chain.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn has_available(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        if !self.config.ready {
            return Ok(false);
        }
        if self.known_available == self.next_available {
            // Acquire: what the driver wrote before the index is visible after it.
            let index = self.load(ram, self.config.available, 2, Ordering::Acquire)?;
            let by = index.wrapping_sub(self.next_available);
            if by > self.config.size {
                return Err(QueueError::AvailableIndex {
                    by,
                    size: self.config.size,
                });
            }
            self.known_available = index;
        }
        Ok(self.known_available != self.next_available)
    }

    /// Hands a chain back, of whose writable part `len` bytes were written.
    ///
    /// # Errors
    /// The queue is not ready or its ring has left guest memory.
    pub fn push(&mut self, ram: &GuestRam, head: u16, len: u32) -> Result<(), QueueError> {
        self.push_together(ram, [(head, len)])
    }

    /// Hands several chains back, which the driver sees all at once: each with how many bytes were written.
    ///
    /// # Errors
    /// The queue is not ready or its ring has left guest memory.
    pub fn push_together(
        &mut self,
        ram: &GuestRam,
        chains: impl IntoIterator<Item = (u16, u32)>,
    ) -> Result<(), QueueError> {
        if !self.config.ready {
            return Err(QueueError::NotReady(self.index));
        }
        let used = self.config.used;
        for (head, len) in chains {
            let at = 8 * self.slot(self.next_used);
            let head = u32::from(head).to_le();
            self.store(ram, used, 4 + at, head, Ordering::Relaxed)?;
            self.store(ram, used, 8 + at, len.to_le(), Ordering::Relaxed)?;
            self.next_used = self.next_used.wrapping_add(1);
        }
        // Release: the elements above and the data in the buffers come before the index.
        self.store(ram, used, 2, self.next_used.to_le(), Ordering::Release)
    }

    /// Whether the driver wants to hear of what was pushed since the last call (§2.7.7).
    ///
    /// # Errors
    /// The ring has left guest memory.
    pub fn needs_notification(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        let new = self.next_used;
        let old = self.signalled_used.replace(new);
        if !self.config.ready || old == Some(new) {
            return Ok(false);
        }
        // The index is out before the driver's wish is read; the driver does the same the other way round.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags: u16 = self.load(ram, self.config.available, 0, Ordering::Relaxed)?;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        let Some(old) = old else { return Ok(true) };
        let offset = 4 + 2 * u64::from(self.config.size);
        let used_event: u16 = self.load(ram, self.config.available, offset, Ordering::Relaxed)?;
        Ok(new.wrapping_sub(used_event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Signals the driver if it [wants to hear](Self::needs_notification) of what was pushed.
    ///
    /// # Errors
    /// The ring has left guest memory.
    pub fn notify(&mut self, ram: &GuestRam, interrupt: &dyn Interrupt) -> Result<(), QueueError> {
        if self.needs_notification(ram)? {
            interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    /// Asks the driver not to kick, while the device is emptying the queue anyhow.
    ///
    /// # Errors
    /// The ring has left guest memory.
    pub fn disable_kicks(&mut self, ram: &GuestRam) -> Result<(), QueueError> {
        // With EVENT_IDX the event index stays behind by itself.
        if self.event_idx || !self.config.ready {
            return Ok(());
        }
        self.store(
            ram,
            self.config.used,
            0,
            USED_F_NO_NOTIFY.to_le(),
            Ordering::Relaxed,
        )
    }

    /// Asks the driver to kick for the next chain. Returns `true` if one has come meanwhile: look again then.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn enable_kicks(&mut self, ram: &GuestRam) -> Result<bool, QueueError> {
        if !self.config.ready {
            return Ok(false);
        }
        if self.event_idx {
            let offset = 4 + 8 * u64::from(self.config.size);
            let event = self.next_available.to_le();
            self.store(ram, self.config.used, offset, event, Ordering::Relaxed)?;
        } else {
            self.store(ram, self.config.used, 0, 0u16, Ordering::Relaxed)?;
        }
        // The wish is out before the index is read again.
        fence(Ordering::SeqCst);
        self.has_available(ram)
    }

    fn slot(&self, position: u16) -> u64 {
        // The size is a power of two of a ready queue; the mask of an unready one is never used.
        u64::from(position & self.config.size.wrapping_sub(1))
    }

    fn load(
        &self,
        ram: &GuestRam,
        ring: u64,
        offset: u64,
        order: Ordering,
    ) -> Result<u16, QueueError> {
        let at = GuestAddress(ring.wrapping_add(offset));
        let value: u16 = ram
            .load(at, order)
            .map_err(|_| QueueError::MemoryGone(at.0))?;
        Ok(u16::from_le(value))
    }

    fn store<T: vm_memory::AtomicAccess>(
        &self,
        ram: &GuestRam,
        ring: u64,
        offset: u64,
        value: T,
        order: Ordering,
    ) -> Result<(), QueueError> {
        let at = GuestAddress(ring.wrapping_add(offset));
        ram.store(value, at, order)
            .map_err(|_| QueueError::MemoryGone(at.0))
    }
}

fn validate(config: &QueueConfig, max: u16, ram: &GuestRam) -> Result<(), QueueError> {
    let size = config.size;
    if !size.is_power_of_two() || size > max {
        return Err(QueueError::Size { size, max });
    }
    let entries = u64::from(size);
    let rings = [
        ("descriptor table", config.descriptors, 16, 16 * entries),
        ("available ring", config.available, 2, 6 + 2 * entries),
        ("used ring", config.used, 4, 6 + 8 * entries),
    ];
    for (ring, address, alignment, len) in rings {
        if address % alignment != 0 {
            return Err(QueueError::Alignment {
                ring,
                address,
                alignment,
            });
        }
        if !GuestMemoryBackend::check_range(ram, GuestAddress(address), len as usize) {
            return Err(QueueError::RingOutside { ring, address });
        }
    }
    Ok(())
}
