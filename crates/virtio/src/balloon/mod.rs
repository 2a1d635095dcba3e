//! The memory balloon (§5.5): memory that the guest gives back on request, and memory that it reports as free.

mod config;
mod device;
mod metrics;
mod pages;
mod reclaim;
mod state;
mod statistics;
#[cfg(test)]
mod tests;

pub use self::device::{Balloon, BalloonHandle};
pub use self::metrics::BalloonMetrics;
pub use self::state::BalloonState;
pub use self::statistics::BalloonStatistics;
