//! What is kept of an entropy device across a suspend: nothing but that it was one. Random numbers must never be kept.

use serde::{Deserialize, Serialize};

/// Version of [`RngState`].
pub(super) const VERSION: u32 = 1;

/// An entropy device at rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}
