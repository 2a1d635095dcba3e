//! Counters of an entropy device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What an entropy device has done since it was made.
#[derive(Debug, Default)]
pub struct RngMetrics {
    pub(super) bytes: AtomicU64,
    pub(super) throttled: AtomicU64,
}

impl RngMetrics {
    /// Bytes given to the guest.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How often the guest had to wait for its rate limit.
    pub fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }
}
