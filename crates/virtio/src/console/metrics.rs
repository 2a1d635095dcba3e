//! Counters of a console.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a console has done since it was made.
#[derive(Debug, Default)]
pub struct ConsoleMetrics {
    pub(super) output: AtomicU64,
    pub(super) discarded: AtomicU64,
    pub(super) input: AtomicU64,
    pub(super) output_stalls: AtomicU64,
    pub(super) input_stalls: AtomicU64,
}

impl ConsoleMetrics {
    /// Bytes that the guest wrote and the host side took.
    pub fn output_bytes(&self) -> u64 {
        self.output.load(Ordering::Relaxed)
    }

    /// Bytes that the guest wrote after the host side had gone.
    pub fn discarded_bytes(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }

    /// Bytes that the guest was given.
    pub fn input_bytes(&self) -> u64 {
        self.input.load(Ordering::Relaxed)
    }

    /// How often the guest had to wait for the host side.
    pub fn output_stalls(&self) -> u64 {
        self.output_stalls.load(Ordering::Relaxed)
    }

    /// How often the host side had to wait for the guest's buffers.
    pub fn input_stalls(&self) -> u64 {
        self.input_stalls.load(Ordering::Relaxed)
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
