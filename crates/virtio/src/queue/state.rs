//! What a transport knows of a queue before the device runs, and what is kept of one across a suspend.

use serde::{Deserialize, Serialize};

/// A queue as the driver set it up through a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueConfig {
    /// Number of entries, a power of two.
    pub size: u16,
    /// The driver said that the queue may be used.
    pub ready: bool,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring ("driver area").
    pub available: u64,
    /// Guest address of the used ring ("device area").
    pub used: u64,
}

/// A queue with its position, complete enough to go on elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueueState {
    /// How it was set up.
    pub config: QueueConfig,
    /// The next entry to take from the available ring.
    pub next_available: u16,
    /// The next entry to fill in the used ring.
    pub next_used: u16,
}
