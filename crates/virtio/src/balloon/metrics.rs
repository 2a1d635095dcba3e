//! Counters of a balloon.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a balloon has done since it was made.
#[derive(Debug, Default)]
pub struct BalloonMetrics {
    pub(super) inflated: AtomicU64,
    pub(super) deflated: AtomicU64,
    pub(super) reported: AtomicU64,
    pub(super) rejected: AtomicU64,
}

impl BalloonMetrics {
    /// Bytes given back by inflating.
    pub fn inflated_bytes(&self) -> u64 {
        self.inflated.load(Ordering::Relaxed)
    }

    /// Bytes taken by the guest again.
    pub fn deflated_bytes(&self) -> u64 {
        self.deflated.load(Ordering::Relaxed)
    }

    /// Bytes given back by reports of free pages.
    pub fn reported_bytes(&self) -> u64 {
        self.reported.load(Ordering::Relaxed)
    }

    /// Pages named by the guest that it does not have.
    pub fn rejected_pages(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
