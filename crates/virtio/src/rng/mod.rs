//! The entropy device (§5.4): the host's random numbers for the guest.

mod config;
mod device;
mod metrics;
mod requests;
mod state;
#[cfg(test)]
mod tests;

pub use self::config::DEFAULT_LIMITS;
pub use self::device::Rng;
pub use self::metrics::RngMetrics;
pub use self::state::RngState;
