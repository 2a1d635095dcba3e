//! The vfkit backend for macOS.
//!
//! [`VfkitPlan`] turns a VM's specification into vfkit's command line; it is a pure function that is
//! compiled and tested on every target. [`VfkitBackend`] starts and follows the process on any Unix:
//! requests go over a Unix socket, the console over a pseudo-terminal, frames and vsock over sockets.

mod argument;
mod capabilities;
mod plan;

#[cfg(unix)]
mod backend;
#[cfg(unix)]
mod console;
#[cfg(unix)]
mod find;
#[cfg(unix)]
mod handle;
#[cfg(unix)]
mod http;
#[cfg(unix)]
mod launch;
#[cfg(unix)]
mod log;
#[cfg(unix)]
mod orphan_guard;
#[cfg(unix)]
mod rest;
#[cfg(unix)]
mod vsock;

#[cfg(test)]
mod tests;

pub use argument::MAX_SOCKET_PATH_BYTES;
#[cfg(unix)]
pub use backend::VfkitBackend;
pub use capabilities::capabilities;
pub use plan::{NETWORK_DESCRIPTOR, Surroundings, VfkitPlan, VsockDirection, VsockWire};
