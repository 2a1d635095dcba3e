//! A virtual machine: memory, processors, devices, and the threads that run them.
//!
//! [`Machine::build`] takes plain data ([`MachineConfig`]) and open descriptors ([`MachineFiles`])
//! and opens nothing by itself, so that it can run in a process that may not. [`Machine::start`]
//! lets it go, [`Machine::end_event`] tells of its end, dropping it leaves nothing behind.

pub mod acpi;
pub mod boot;
pub mod build;
pub mod config;
pub mod control;
pub mod devices;
pub mod end;
pub mod error;
pub mod interrupt;
pub mod layout;
mod life;
pub mod memory;
pub mod panic_watch;
pub mod vcpu;
pub mod virtio_mount;

pub use config::{
    DeviceConfig, DeviceDiscovery, MAX_VCPUS, MachineConfig, MachineFiles, default_command_line,
};
pub use end::{MachineEnd, VcpuFault};
pub use error::MachineError;
pub use life::{Machine, Prepare, ThreadKind};
