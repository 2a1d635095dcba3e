//! The rings as the front end sets them up, one by one.

use std::sync::atomic::Ordering;

use capsa_virtio::queue::MAX_QUEUE_SIZE;
use capsa_virtio::{GuestRam, QueueConfig, QueueError, QueueState, Virtqueue};
use vm_memory::{Bytes, GuestAddress};

/// One ring. Addresses are the guest's.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ring {
    size: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    /// The next entry of the available ring to take.
    pub(crate) base: u16,
    /// A kick descriptor came, and the ring was not stopped since.
    pub(crate) started: bool,
    /// See `VHOST_USER_SET_VRING_ENABLE`.
    pub(crate) enabled: bool,
}

impl Ring {
    pub(crate) fn set_size(&mut self, size: u16) {
        self.size = size;
    }

    pub(crate) fn set_addresses(&mut self, descriptors: u64, available: u64, used: u64) {
        (self.descriptors, self.available, self.used) = (descriptors, available, used);
    }

    /// How the device sees it.
    pub(crate) fn config(&self) -> QueueConfig {
        if !self.started {
            return QueueConfig::default();
        }
        QueueConfig {
            size: self.size,
            ready: true,
            descriptors: self.descriptors,
            available: self.available,
            used: self.used,
        }
    }

    /// Whether a device that was halted in `state` can go on with this ring where it was.
    pub(crate) fn continues(&self, state: &QueueState) -> bool {
        self.config() == state.config && (!self.started || self.base == state.next_available)
    }

    /// The queue for the device. Its own maximum does not count: the front end offers the driver what
    /// it likes, QEMU's virtio-mmio 1024 entries for every queue.
    ///
    /// # Errors
    /// The ring is not sound.
    pub(crate) fn queue(
        &self,
        index: u16,
        features: u64,
        ram: &GuestRam,
    ) -> Result<Virtqueue, QueueError> {
        let mut queue = Virtqueue::new(index, self.config(), MAX_QUEUE_SIZE, features, ram)?;
        if self.started {
            // The used ring's own index is the one that the driver knows.
            let at = GuestAddress(self.used.wrapping_add(2));
            let used: u16 = ram
                .load(at, Ordering::Relaxed)
                .map_err(|_| QueueError::MemoryGone(at.0))?;
            queue.set_position(self.base, u16::from_le(used));
        }
        Ok(queue)
    }
}
