//! Limits. The device has no configuration space.

use crate::rate::{Rate, RateLimits};

/// Most bytes given for one request: a driver asks for as much as its buffer holds, and gets to know how much it got.
pub(super) const MAX_REQUEST: u64 = 64 << 10;

/// Enough to seed any guest at once, too little to make the host's generator busy.
pub const DEFAULT_LIMITS: RateLimits = RateLimits {
    bytes: Some(Rate {
        per_second: 1 << 20,
        burst: 1 << 20,
    }),
    operations: Some(Rate {
        per_second: 10_000,
        burst: 10_000,
    }),
};
