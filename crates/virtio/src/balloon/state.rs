//! What is kept of a balloon across a suspend.

use serde::{Deserialize, Serialize};

/// Version of [`BalloonState`].
pub(super) const VERSION: u32 = 1;

/// A balloon at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages of 4 KiB that the guest is to give.
    pub wanted_pages: u32,
    /// Pages that it has given.
    pub actual_pages: u32,
}
