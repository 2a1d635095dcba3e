//! Guest kernels and initramfs archives: recognise, find, store and build them.
//!
//! - [`inspect`] tells what a kernel file is, and why it cannot be booted.
//! - [`discover`] finds the kernel and the initramfs of a VM that names none.
//! - [`store`] keeps kernels by name in a data directory.
//! - [`build`] makes the default kernel from Linux sources.
//! - [`agent`] builds the agent from a checkout, and [`initramfs`] makes the default initramfs.

pub mod agent;
mod arch;
pub mod build;
pub mod discover;
mod fingerprint;
pub mod initramfs;
pub mod inspect;
pub mod store;
#[cfg(test)]
mod test_kernel;

pub use arch::{Arch, UnknownArch};
