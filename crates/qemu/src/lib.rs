//! The QEMU backend: a fallback for machines without usable hardware virtualization.
//!
//! A VM is one `qemu-system-x86_64` process with the `microvm` machine, or `q35` for UEFI boot. It is given every file and
//! socket as an open descriptor, is steered over QMP, writes nothing to the file system, and ends
//! with its caller. Linux only.

#![cfg(target_os = "linux")]

mod arguments;
mod backend;
mod balloon;
mod devices;
mod ending;
mod installation;
mod launch;
mod lines;
mod log;
mod network;
mod qmp;
mod serial;
mod uefi;
mod vm;

pub use arguments::Accelerator;
pub use backend::QemuBackend;
pub use installation::{Installation, InstallationError, MINIMUM_VERSION, PROGRAM, VARIABLE};
