//! The devices that QEMU reaches over vhost-user, and the process that runs them.
//!
//! Disks, directory shares and the socket device are Capsa's own models, the same as on KVM. They run
//! in one process for each VM, which is the caller's executable started again in a
//! [role](capsa_process::role) of its own. It is handed everything as descriptors, the sockets to
//! QEMU among them, and opens nothing; what it may touch is what the guest was given.

mod arguments;
mod child;
mod confinement;
mod parent;
mod plan;
mod protocol;

pub(crate) use arguments::Bus;
pub(crate) use parent::DeviceProcess;
pub(crate) use plan::{DevicePlan, check, check_count};
