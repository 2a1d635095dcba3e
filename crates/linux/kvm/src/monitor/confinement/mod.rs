//! How a monitor's process is confined: what it keeps, and which system calls each kind of thread may
//! make. There is a file for each policy, to be read as a list.

mod common;
mod control;
mod devices;
mod files;
mod serial;
mod start;
#[cfg(test)]
mod tests;
mod vcpu;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use capsa_process::confine::{Access, Confinement, Filter, FilterError, Layer, Missing, confine};
use capsa_virtio::setup::DeviceSetup;

use crate::machine::{DeviceConfig, MachineConfig, MachineFiles, Prepare, ThreadKind};

/// A process that is confined but for the filters of its threads.
pub(super) struct Confined {
    filters: Option<Arc<Filters>>,
}

struct Filters {
    vcpu: Filter,
    devices: Filter,
    serial: Filter,
    files: Filter,
    control: Filter,
}

impl Filters {
    fn compile(config: &MachineConfig) -> Result<Self, FilterError> {
        let files = if serves_directories(config) {
            &files::OF_SHARES
        } else {
            &files::OF_DISKS
        };
        Ok(Self {
            vcpu: Filter::compile(&vcpu::POLICY)?,
            devices: Filter::compile(&devices::POLICY)?,
            serial: Filter::compile(&serial::POLICY)?,
            files: Filter::compile(files)?,
            control: Filter::compile(&control::POLICY)?,
        })
    }

    fn of(&self, thread: ThreadKind) -> &Filter {
        match thread {
            ThreadKind::Vcpu => &self.vcpu,
            ThreadKind::Devices => &self.devices,
            ThreadKind::Serial => &self.serial,
            ThreadKind::Files => &self.files,
        }
    }
}

/// Confines this process, which has one thread, to what a machine needs. Says what this host cannot
/// take away.
pub(super) fn enter(
    socket: BorrowedFd<'_>,
    config: &MachineConfig,
    files: &MachineFiles,
) -> (Confined, Vec<Missing>) {
    let mut kept = Confinement {
        descriptors: descriptors(socket, files),
        directories: directories(config, files),
    };
    let mut missing = Vec::new();
    if serves_directories(config) {
        match capsa_virtio::fs::keep_descriptors_in_reach() {
            Ok(descriptor) => kept.descriptors.push(descriptor.as_raw_fd()),
            // The share says so itself when it is made.
            Err(error) => tracing::warn!(%error, "cannot open /proc/self/fd"),
        }
    }
    missing.extend(confine(&kept));
    let installed = Filters::compile(config)
        .map_err(io::Error::other)
        .and_then(|filters| {
            let start = Filter::compile(&start::POLICY).map_err(io::Error::other)?;
            start.install().map(|()| filters)
        });
    let filters = match installed {
        Ok(filters) => Some(Arc::new(filters)),
        Err(error) => {
            missing.push(Missing::new(Layer::SystemCalls, error));
            None
        }
    };
    (Confined { filters }, missing)
}

impl Confined {
    /// For a monitor on a thread of the caller's.
    pub(super) fn not_at_all() -> Self {
        Self { filters: None }
    }

    /// What each of the machine's threads does first.
    pub(super) fn prepare(&self) -> Prepare {
        let filters = self.filters.clone();
        Arc::new(move |thread| match &filters {
            Some(filters) => filters.of(thread).install(),
            None => Ok(()),
        })
    }

    /// For the thread that built the machine, once it is started.
    ///
    /// # Errors
    /// See [`Filter::install`].
    pub(super) fn finish(&self) -> io::Result<()> {
        match &self.filters {
            Some(filters) => filters.control.install(),
            None => Ok(()),
        }
    }
}

fn descriptors(socket: BorrowedFd<'_>, files: &MachineFiles) -> Vec<RawFd> {
    let devices = files.devices.iter().flatten();
    [socket, files.kvm.as_fd(), files.kernel.as_fd()]
        .into_iter()
        .chain(files.initrd.as_ref().map(AsFd::as_fd))
        .chain(files.serial.as_ref().map(AsFd::as_fd))
        .chain(devices.map(AsFd::as_fd))
        .map(|descriptor| descriptor.as_raw_fd())
        .collect()
}

fn serves_directories(config: &MachineConfig) -> bool {
    let is_share =
        |device: &DeviceConfig| matches!(device, DeviceConfig::Virtio(DeviceSetup::Fs(_)));
    config.devices.iter().any(is_share)
}

fn directories<'f>(
    config: &MachineConfig,
    files: &'f MachineFiles,
) -> Vec<(BorrowedFd<'f>, Access)> {
    let mut directories = Vec::new();
    for (device, files) in config.devices.iter().zip(&files.devices) {
        if let (DeviceConfig::Virtio(DeviceSetup::Fs(options)), [root]) = (device, &**files) {
            let access = match options.read_only {
                true => Access::Read,
                false => Access::Write,
            };
            directories.push((root.as_fd(), access));
        }
    }
    directories
}
