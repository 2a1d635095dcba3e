//! The devices that a specification asks for, opened in the caller's process: whatever runs them
//! gets plain data and descriptors, and opens nothing.

mod disks;
mod shares;
mod vsock;

use std::os::fd::OwnedFd;

use capsa_core::{Result, VmSpec};
use capsa_virtio::setup::DeviceSetup;
use capsa_virtio::vsock::ControlSocket;

/// The devices of one VM, opened.
#[derive(Debug, Default)]
pub struct OpenDevices {
    /// Each with its descriptors, in the order in which the guest is to find them.
    pub devices: Vec<(DeviceSetup, Vec<OwnedFd>)>,
    /// The caller's end of the socket device, for [`VsockPorts`](crate::VsockPorts).
    pub vsock: Option<ControlSocket>,
}

impl OpenDevices {
    /// Opens all that `spec` names. Blocks on the file system.
    ///
    /// # Errors
    /// Names the setting and what is wrong with it. Nothing is left open then.
    pub fn open(spec: &VmSpec) -> Result<Self> {
        let mut open = Self::default();
        for disk in &spec.disks {
            open.devices.push(disks::open(disk)?);
        }
        for (index, share) in spec.shares.iter().enumerate() {
            let (setup, directory) = shares::open(index, share)?;
            open.devices.push((setup, vec![directory]));
        }
        if let Some(setting) = &spec.vsock {
            let (setup, theirs, ours) = vsock::open(setting)?;
            open.devices.push((setup, vec![theirs]));
            open.vsock = Some(ours);
        }
        if spec.balloon {
            open.devices.push((DeviceSetup::Balloon, Vec::new()));
        }
        Ok(open)
    }
}
