//! What is kept of a disk across a suspend. Its content is in its files, and nothing is in flight.

use serde::{Deserialize, Serialize};

/// Version of [`BlockState`].
pub(super) const VERSION: u32 = 1;

/// A disk at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// The size that the guest knows, in sectors.
    pub capacity_sectors: u64,
    /// Whether the guest was told that it may not write.
    pub read_only: bool,
}
