//! How a device reaches its driver.

use std::io;
use std::os::fd::OwnedFd;

/// What a device may tell its driver. Given to the device at activation; implemented by the transports.
pub trait Interrupt: Send + Sync {
    /// Says that queue `index` has used buffers. Callers ask [`Virtqueue::needs_notification`] first.
    ///
    /// [`Virtqueue::needs_notification`]: crate::Virtqueue::needs_notification
    fn signal_queue(&self, index: u16);

    /// Says that the device's configuration space has changed (and moves its generation on).
    fn signal_config(&self);

    /// Sets `DEVICE_NEEDS_RESET` (§2.1.1) and signals it as a configuration change.
    fn signal_needs_reset(&self);
}

/// The wire from a transport to the virtual machine: an irqfd in a monitor, a counter in a test.
pub trait InterruptLine: Send + Sync {
    /// Raises an edge.
    ///
    /// # Errors
    /// What the host said; the transport counts it and goes on.
    fn trigger(&self) -> io::Result<()>;
}

/// An eventfd, as KVM's irqfd takes it.
impl InterruptLine for OwnedFd {
    fn trigger(&self) -> io::Result<()> {
        match rustix::io::write(self, &1u64.to_ne_bytes()) {
            // A full counter means that the edge is pending already.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
