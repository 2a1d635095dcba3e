//! Interrupt lines into KVM's interrupt controllers.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use capsa_virtio::InterruptLine;
use kvm_ioctls::VmFd;

/// An edge-triggered IOAPIC pin, raised by system call.
///
/// An irqfd would do the same with one descriptor more and through a kernel worker thread: for
/// interrupts from our own threads the call is the shorter way. Lines that another process raises
/// need an irqfd.
pub struct IrqLine {
    vm: Arc<VmFd>,
    pin: u32,
    /// Without it, a second thread's edge could vanish between the two halves of the first one's.
    pulse: Mutex<()>,
}

impl IrqLine {
    /// The line to `pin` (0 to 23).
    pub fn new(vm: Arc<VmFd>, pin: u32) -> Self {
        Self {
            vm,
            pin,
            pulse: Mutex::new(()),
        }
    }
}

impl InterruptLine for IrqLine {
    fn trigger(&self) -> io::Result<()> {
        let _pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        for level in [true, false] {
            self.vm
                .set_irq_line(self.pin, level)
                .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
        }
        Ok(())
    }
}
