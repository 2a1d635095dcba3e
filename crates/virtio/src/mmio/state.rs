//! What is kept of a transport across a suspend.

use serde::{Deserialize, Serialize};

use crate::{DeviceState, QueueState};

/// Version of [`MmioState`].
pub(super) const VERSION: u32 = 1;

/// A transport and its device at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// Version of this structure.
    pub version: u32,
    /// The device status register, without the needs-reset bit.
    pub status: u32,
    /// Whether the device had asked for a reset.
    pub needs_reset: bool,
    /// What the driver accepted.
    pub driver_features: u64,
    /// The selector registers: device features, driver features, queue, shared memory.
    pub selectors: [u32; 4],
    /// The interrupt status register.
    pub interrupt_status: u32,
    /// The configuration generation.
    pub generation: u32,
    /// Each queue, with its position if the device was running.
    pub queues: Vec<QueueState>,
    /// The device's own state.
    pub device: DeviceState,
}
