//! Interrupt status, configuration generation and the needs-reset bit, reachable without the transport's lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::{Interrupt, InterruptLine};

const USED_BUFFER: u32 = 1;
const CONFIGURATION_CHANGE: u32 = 2;

pub(super) struct MmioInterrupt {
    pub(super) status: AtomicU32,
    pub(super) generation: AtomicU32,
    pub(super) needs_reset: AtomicBool,
    /// Edges that the host could not deliver.
    pub(super) lost: AtomicU64,
    line: Arc<dyn InterruptLine>,
}

impl MmioInterrupt {
    pub(super) fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            lost: AtomicU64::new(0),
            line,
        }
    }

    fn raise(&self, bit: u32) {
        // Release: what the device wrote is visible to the driver that reads the bit.
        self.status.fetch_or(bit, Ordering::Release);
        // Always an edge, even with the bit still set: the driver may have looked at the queue before acknowledging.
        self.trigger();
    }

    pub(super) fn trigger(&self) {
        if self.line.trigger().is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Interrupt for MmioInterrupt {
    fn signal_queue(&self, _index: u16) {
        self.raise(USED_BUFFER);
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(CONFIGURATION_CHANGE);
    }

    fn signal_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.signal_config();
    }
}
