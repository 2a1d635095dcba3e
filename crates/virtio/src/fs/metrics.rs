//! Counters of a share.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a share has done since it was made.
#[derive(Debug, Default)]
pub struct FsMetrics {
    pub(super) requests: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) read: AtomicU64,
    pub(super) written: AtomicU64,
}

impl FsMetrics {
    /// Requests served.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Of these, answered with an error; many are harmless, such as names that do not exist.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Bytes of files read.
    pub fn read_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes of files written.
    pub fn written_bytes(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
