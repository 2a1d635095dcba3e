//! The way from the device to the driver: one eventfd a ring, which the front end hands over.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use capsa_virtio::Interrupt;

/// The call descriptors of all rings.
pub(crate) struct Calls(Mutex<Vec<Option<File>>>);

impl Calls {
    pub(crate) fn new(rings: usize) -> Self {
        Self(Mutex::new((0..rings).map(|_| None).collect()))
    }

    /// Uses `file` for ring `index` from now on; `None` where the driver looks at the ring by itself.
    pub(crate) fn set(&self, index: usize, file: Option<File>) {
        if let Some(call) = self.lock().get_mut(index) {
            *call = file;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<File>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Interrupt for Calls {
    fn signal_queue(&self, index: u16) {
        if let Some(Some(call)) = self.lock().get(usize::from(index)) {
            // It does not wait, and fails only where a signal is pending already.
            let _pending = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    fn signal_config(&self) {
        // The front end's own channel for it would have the device wait for QEMU. No device that is
        // served in this way changes its configuration by itself.
        tracing::debug!("a change of a device's configuration is not told over vhost-user");
    }

    fn signal_needs_reset(&self) {
        // There is no message for it. The device is at rest, and its driver will time out.
        tracing::warn!("a device that is served over vhost-user waits for a reset by its driver");
    }
}
