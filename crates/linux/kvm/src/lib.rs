//! The KVM backend: Capsa's own virtual machine monitor.
//!
//! Two halves, in two processes:
//! - the caller's: [`KvmBackend`] checks a VM's specification, opens its files, and starts the
//!   monitor, which is the caller's own executable once more;
//! - the monitor's: it is entered ahead of `main`, confines itself, and runs a [`machine::Machine`],
//!   which works on what it was handed and opens nothing.
//!
//! They talk by [`protocol`].
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// UNSAFETY: KVM, mapped memory, signals and the hook ahead of `main` can be reached by raw calls only.
#![allow(unsafe_code)]

mod backend;
mod disk_refusal;
mod handle;
mod host_check;
mod launch;
pub mod machine;
mod monitor;
mod plan;
mod probe;
pub mod protocol;

pub use backend::KvmBackend;
