//! The socket device (§5.10): streams between programs in the guest and programs on the host.
//!
//! Each connection is a Unix stream socket on the host side. Which host ports there are, and who wants to reach the guest,
//! is told by a [`HostPorts`]; [`ControlPorts`] is one that gets and gives all its descriptors over a socket, so that the
//! process with the device opens nothing.
//!
//! Flow control is real in both directions (§5.10.6.3): a slow reader on either side slows its own connection, nothing
//! else, and nothing is lost.

mod config;
mod connection;
mod control;
mod device;
mod from_guest;
mod metrics;
mod packet;
mod ports;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod to_guest;

pub use self::config::{HOST_CID, MAX_CONNECTIONS, MIN_GUEST_CID};
pub use self::control::{ControlError, ControlSocket, FromDevice, ToDevice};
pub use self::device::{Vsock, VsockError};
pub use self::metrics::VsockMetrics;
pub use self::packet::{Header, Op};
pub use self::ports::{ControlPorts, HostPorts, HostRequest};
pub use self::state::VsockState;
