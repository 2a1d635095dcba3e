//! Counters of a block device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a disk has done since it was made.
#[derive(Debug, Default)]
pub struct BlockMetrics {
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discards: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) throttled: AtomicU64,
}

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        impl BlockMetrics {
            $($(#[$doc])* pub fn $name(&self) -> u64 { self.$name.load(Ordering::Relaxed) })*
        }
    };
}

getters! {
    /// Reads that were begun.
    reads,
    /// Bytes that they asked for.
    read_bytes,
    /// Writes that were begun.
    writes,
    /// Bytes that they carried.
    written_bytes,
    /// Flushes that were begun.
    flushes,
    /// Discards and writes of zeroes that were begun.
    discards,
    /// Requests answered with an error.
    failures,
    /// How often requests had to wait for the rate limit.
    throttled,
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
