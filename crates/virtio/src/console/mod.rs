//! The console device (§5.3): one port, on a host stream socket.
//!
//! Nothing is lost in either direction: what the host side does not take stays in the transmit queue, what the guest
//! has no buffers for stays in the socket.

mod config;
mod device;
mod input;
mod metrics;
mod output;
mod state;
#[cfg(test)]
mod tests;

pub use self::device::{Console, ConsoleHandle};
pub use self::metrics::ConsoleMetrics;
pub use self::state::ConsoleState;
