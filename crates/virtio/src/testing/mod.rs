//! A driver's side of the queues and a home for devices, so that tests and fuzz targets need no virtual machine.
//!
//! Everything here panics on misuse: it is for tests only.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod driver_queue;
pub mod fuzz;
#[cfg(test)]
mod fuzz_seeds;
mod harness;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{FileOffset, GuestAddress};

pub use self::driver_queue::{Buffer, DriverQueue, Offered, desc};
pub use self::harness::Harness;
use crate::{GuestMemory, GuestRam, Interrupt, InterruptLine};

/// Guest memory of `mib` MiB at address zero, on a memfd as QEMU shares it.
pub fn guest_memory(mib: usize) -> GuestMemory {
    guest_memory_at(&[(0, mib << 20)])
}

/// Guest memory in several `(address, bytes)` ranges, each on a memfd of its own.
pub fn guest_memory_at(ranges: &[(u64, usize)]) -> GuestMemory {
    let ranges = ranges.iter().map(|&(address, len)| {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = std::fs::File::from(rustix::fs::memfd_create("guest", flags).expect("memfd"));
        file.set_len(len as u64).expect("a memfd of that size");
        (GuestAddress(address), len, Some(FileOffset::new(file, 0)))
    });
    GuestMemory::new(GuestRam::from_ranges_with_files(ranges).expect("separate ranges"))
}

/// Counts what a device tells its driver.
#[derive(Default)]
pub struct CountingInterrupt {
    queues: AtomicU32,
    config: AtomicU32,
    needs_reset: AtomicU32,
}

impl CountingInterrupt {
    /// A counter at zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Signals of any queue so far.
    pub fn queue_signals(&self) -> u32 {
        self.queues.load(Ordering::SeqCst)
    }

    /// Configuration changes so far.
    pub fn config_signals(&self) -> u32 {
        self.config.load(Ordering::SeqCst)
    }

    /// Requests for a reset so far.
    pub fn reset_requests(&self) -> u32 {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

impl Interrupt for CountingInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.queues.fetch_add(1, Ordering::SeqCst);
    }

    fn signal_config(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }

    fn signal_needs_reset(&self) {
        self.needs_reset.fetch_add(1, Ordering::SeqCst);
    }
}

/// A line that counts its edges.
#[derive(Default)]
pub struct CountingLine(AtomicU32);

impl CountingLine {
    /// Edges so far.
    pub fn edges(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }
}

impl InterruptLine for CountingLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}
