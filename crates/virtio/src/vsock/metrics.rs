//! Counters of a socket device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a socket device has done since it was made.
#[derive(Debug, Default)]
pub struct VsockMetrics {
    pub(super) to_guest: AtomicU64,
    pub(super) from_guest: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) violations: AtomicU64,
}

impl VsockMetrics {
    /// Bytes carried to the guest.
    pub fn to_guest_bytes(&self) -> u64 {
        self.to_guest.load(Ordering::Relaxed)
    }

    /// Bytes carried to host programs.
    pub fn from_guest_bytes(&self) -> u64 {
        self.from_guest.load(Ordering::Relaxed)
    }

    /// Connections established, from either side.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Requests of the guest that were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Connections ended because the guest sent more than it was allowed.
    pub fn violations(&self) -> u64 {
        self.violations.load(Ordering::Relaxed)
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
