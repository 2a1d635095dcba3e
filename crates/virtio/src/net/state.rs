//! What is kept of a network device across a suspend.

use serde::{Deserialize, Serialize};

/// Version of [`NetState`].
pub(super) const VERSION: u32 = 1;

/// A network device at rest. Frames that are in its queues stay there, those in its socket belong to the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// The hardware address that the driver was told.
    pub mac: [u8; 6],
    /// The MTU that the driver was told.
    pub mtu: u16,
}
