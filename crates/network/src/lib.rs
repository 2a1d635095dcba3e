//! A user-mode network ([`capsa_net`]) in a process of its own.
//!
//! The process is the caller's executable started again. It is given a network's configuration and the
//! other end of a [`ControlClient`], over which guests come and go with their frame sockets; it opens
//! nothing but sockets of the host's network. What a guest may talk to is decided there, so that it
//! holds whatever becomes of the process that runs the guest.
//!
//! The network ends when its [`NetworkProcess`] is dropped, or by itself when the caller is gone.
//! Where processes cannot be started in this way (on macOS so far) it is a thread of the caller's.

// UNSAFETY: a role's entry ahead of `main` is placed in a section of the executable by its macro.
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod message;
mod process;
#[cfg(target_os = "linux")]
mod serve;

pub use capsa_net::ControlClient;
pub use process::{NetworkEnd, NetworkProcess, Place, StartError};
#[cfg(target_os = "linux")]
pub use serve::allow_many_descriptors;
