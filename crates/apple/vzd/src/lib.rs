//! `capsa-vzd`, the macOS daemon that runs one virtual machine for another process, and the
//! recommended macOS backend, which uses it.
//!
//! [`serve`] is the daemon, generic over what runs the VM; [`RemoteEngine`] is the library's side: an
//! engine that starts a daemon for each VM. The control socket is the daemon's standard input, so it
//! ends when the library does; its log is its error output, never the control socket.

#[cfg(unix)]
mod daemon;
#[cfg(unix)]
mod find;
#[cfg(unix)]
mod process;
#[cfg(unix)]
mod remote;

#[cfg(unix)]
pub use daemon::{DaemonError, run, serve};
#[cfg(unix)]
pub use remote::{RemoteEngine, subprocess_backend};
