//! What is kept of a console across a suspend.

use serde::{Deserialize, Serialize};

/// Version of [`ConsoleState`].
pub(super) const VERSION: u32 = 1;

/// A console at rest. Bytes still in its socket belong to the host side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Width of the window in characters, 0 if not known.
    pub columns: u16,
    /// Height of the window in characters, 0 if not known.
    pub rows: u16,
    /// Bytes of the transmit queue's first chain that the host side has taken already.
    pub sent_of_first: u32,
}
