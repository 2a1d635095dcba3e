//! Counters of a network device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a network device has done since it was made.
#[derive(Debug, Default)]
pub struct NetMetrics {
    pub(super) received_frames: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) received_dropped: AtomicU64,
    pub(super) sent_frames: AtomicU64,
    pub(super) sent_bytes: AtomicU64,
    pub(super) sent_dropped: AtomicU64,
    pub(super) receive_stalls: AtomicU64,
    pub(super) send_stalls: AtomicU64,
}

impl NetMetrics {
    /// Frames that the guest was given.
    pub fn received_frames(&self) -> u64 {
        self.received_frames.load(Ordering::Relaxed)
    }

    /// Bytes of those frames.
    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Frames for the guest that were malformed, or that its driver cannot take.
    pub fn received_dropped(&self) -> u64 {
        self.received_dropped.load(Ordering::Relaxed)
    }

    /// Frames of the guest that went out.
    pub fn sent_frames(&self) -> u64 {
        self.sent_frames.load(Ordering::Relaxed)
    }

    /// Bytes of those frames.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    /// Frames of the guest that were too short or too long, or that came after the other side had gone.
    pub fn sent_dropped(&self) -> u64 {
        self.sent_dropped.load(Ordering::Relaxed)
    }

    /// How often the other side had to wait for the guest's buffers.
    pub fn receive_stalls(&self) -> u64 {
        self.receive_stalls.load(Ordering::Relaxed)
    }

    /// How often the guest had to wait for the other side.
    pub fn send_stalls(&self) -> u64 {
        self.send_stalls.load(Ordering::Relaxed)
    }
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
