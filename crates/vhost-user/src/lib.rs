//! Virtio device models over vhost-user: the second mount of `capsa-virtio`, for QEMU.
//!
//! [`serve`] runs one device for the front end at the other end of a connected socket. What the front end sends is not
//! trusted: memory is taken only where it cannot shrink under the device, every address of a ring is looked up in the
//! table of memory, and a front end that breaks the protocol ends its connection and nothing else.
//!
//! Specification: *Vhost-user Protocol*, in QEMU's documentation.
//!
//! The crate is empty on systems other than Linux.
#![cfg(target_os = "linux")]

mod backend;
mod calls;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod memory;
mod rings;
mod serve;
#[cfg(test)]
mod tests;

pub use serve::{ServeError, serve};
