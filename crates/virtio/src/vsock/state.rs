//! What is kept of a socket device across a suspend. Connections end with it; the guest is told so (§5.10.6.6).

use serde::{Deserialize, Serialize};

/// Version of [`VsockState`].
pub(super) const VERSION: u32 = 1;

/// A socket device at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's address.
    pub guest_cid: u64,
    /// The next port for a connection from the host.
    pub next_port: u32,
    /// Whether the guest has to be told that its connections are gone.
    pub had_driver: bool,
}
