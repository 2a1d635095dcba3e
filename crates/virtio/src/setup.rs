//! Devices as plain data and descriptors: what the process that opens files hands to the one that runs the devices.
//!
//! The one side makes a [`DeviceSetup`] and its descriptors, the other side [makes](DeviceSetup::make) the device of them
//! and opens nothing. A monitor and a vhost-user process take the same ones.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::VirtioDevice;
use crate::balloon::{Balloon, BalloonHandle};
use crate::block::engine::ThreadHook;
use crate::block::image::{ImageError, LayerPlan, OpenDisk};
use crate::block::{Block, BlockError, BlockHandle, BlockOptions};
use crate::fs::{Fs, FsError, FsOptions};
use crate::net::{Net, NetConfig, NetConfigError, NetHandle};
use crate::rate::RateLimits;
use crate::vsock::{ControlPorts, ControlSocket, Vsock, VsockError};

/// One device, but for its descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeviceSetup {
    /// A disk. It takes a descriptor for each layer, see [`OpenDisk::into_parts`].
    Block(BlockSetup),
    /// A shared directory. It takes the directory's descriptor, see [`FsOptions::open_directory`].
    Fs(FsOptions),
    /// A socket device. It takes the device's end of a [`ControlSocket`].
    Vsock {
        /// The guest's address.
        guest_cid: u64,
    },
    /// A memory balloon. It takes no descriptor.
    Balloon,
    /// A network interface. It takes the device's end of a frame socket, see [`frame_sockets`].
    ///
    /// [`frame_sockets`]: crate::net::frame_sockets
    Net(NetConfig),
}

/// A disk, but for its descriptors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockSetup {
    /// Its images, the uppermost first.
    pub layers: Vec<LayerPlan>,
    /// See [`BlockOptions::serial`].
    pub serial: String,
    /// See [`BlockOptions::limits`].
    pub limits: RateLimits,
    /// See [`BlockOptions::queues`].
    pub queues: u16,
    /// See [`BlockOptions::keep_raw`].
    pub keep_raw: bool,
}

/// The host's control over a device that was made.
#[derive(Clone)]
#[non_exhaustive]
pub enum DeviceControl {
    /// It needs none.
    None,
    /// Of a disk.
    Block(BlockHandle),
    /// Of a balloon.
    Balloon(BalloonHandle),
    /// Of a network interface.
    Net(NetHandle),
}

/// Why a device cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Setup and descriptors do not belong together.
    #[error("the device takes {needed} descriptors, {got} came with it")]
    Descriptors {
        /// What it takes.
        needed: usize,
        /// What came.
        got: usize,
    },
    /// A disk's image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A disk.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// A share.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A socket device.
    #[error(transparent)]
    Vsock(#[from] VsockError),
    /// A network interface.
    #[error(transparent)]
    Net(#[from] NetConfigError),
    /// A balloon.
    #[error("cannot make the balloon: {0}")]
    Balloon(#[source] std::io::Error),
}

impl DeviceSetup {
    /// A short name of its kind, such as `block`, for threads and messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Block(_) => "block",
            Self::Fs(_) => "fs",
            Self::Vsock { .. } => "vsock",
            Self::Balloon => "balloon",
            Self::Net(_) => "net",
        }
    }

    /// How many descriptors it takes.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Block(block) => block.layers.len(),
            Self::Fs(_) | Self::Vsock { .. } | Self::Net(_) => 1,
            Self::Balloon => 0,
        }
    }

    /// Makes the device. `hook` runs first on each thread that the device starts by itself.
    ///
    /// # Errors
    /// [`SetupError`].
    pub fn make(
        self,
        files: Vec<OwnedFd>,
        hook: Option<ThreadHook>,
    ) -> Result<(Box<dyn VirtioDevice>, DeviceControl), SetupError> {
        let counts = SetupError::Descriptors {
            needed: self.descriptors(),
            got: files.len(),
        };
        if self.descriptors() != files.len() {
            return Err(counts);
        }
        match self {
            Self::Block(setup) => make_block(setup, files, hook),
            Self::Fs(options) => {
                let root = files.into_iter().next().ok_or(counts)?;
                Ok((Box::new(Fs::new(root, options)?), DeviceControl::None))
            }
            Self::Vsock { guest_cid } => {
                let socket = files.into_iter().next().ok_or(counts)?;
                let ports = ControlPorts::new(ControlSocket::from_fd(socket));
                let device = Vsock::new(guest_cid, Box::new(ports))?;
                Ok((Box::new(device), DeviceControl::None))
            }
            Self::Net(config) => {
                let socket = files.into_iter().next().ok_or(counts)?;
                let (device, handle) = Net::new(config, socket)?;
                Ok((Box::new(device), DeviceControl::Net(handle)))
            }
            Self::Balloon => {
                let (device, handle) = Balloon::new().map_err(SetupError::Balloon)?;
                Ok((Box::new(device), DeviceControl::Balloon(handle)))
            }
        }
    }
}

fn make_block(
    setup: BlockSetup,
    files: Vec<OwnedFd>,
    thread_hook: Option<ThreadHook>,
) -> Result<(Box<dyn VirtioDevice>, DeviceControl), SetupError> {
    let BlockSetup {
        layers,
        serial,
        limits,
        queues,
        keep_raw,
    } = setup;
    let backend = OpenDisk::backend_from_parts(layers, files)?;
    let options = BlockOptions {
        serial,
        limits,
        queues,
        keep_raw,
        thread_hook,
        ..BlockOptions::default()
    };
    let (device, handle) = Block::new(backend, options)?;
    Ok((Box::new(device), DeviceControl::Block(handle)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use super::*;

    fn null(count: usize) -> Vec<OwnedFd> {
        (0..count)
            .map(|_| File::open("/dev/null").unwrap().into())
            .collect()
    }

    #[test]
    fn device_with_descriptors_too_few_or_too_many_is_refused() {
        for (setup, count) in [
            (DeviceSetup::Vsock { guest_cid: 3 }, 0),
            (DeviceSetup::Vsock { guest_cid: 3 }, 2),
            (DeviceSetup::Fs(FsOptions::new("tag")), 0),
            (DeviceSetup::Balloon, 1),
        ] {
            let refused = setup.make(null(count), None).err();

            assert!(
                matches!(refused, Some(SetupError::Descriptors { got, .. }) if got == count),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn balloon_is_made_with_its_control() {
        let (device, control) = DeviceSetup::Balloon.make(Vec::new(), None).unwrap();

        assert_eq!(device.device_type(), 5);
        assert!(matches!(control, DeviceControl::Balloon(_)));
    }

    #[test]
    fn vsock_device_with_a_reserved_address_is_refused() {
        let (_, theirs) = ControlSocket::pair().unwrap();

        let refused = DeviceSetup::Vsock { guest_cid: 2 }.make(vec![theirs.into()], None);

        assert!(matches!(refused.err(), Some(SetupError::Vsock(_))));
    }
}
