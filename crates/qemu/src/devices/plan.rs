//! From a specification to what QEMU and the device process are given.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use capsa_core::{BackendKind, Error, Result, VmSpec};
use capsa_process::{MAX_DESCRIPTORS, OpenDevices};
use capsa_virtio::setup::DeviceSetup;
use capsa_virtio::vsock::ControlSocket as VsockControl;

use super::arguments::{self, Bus};
use super::parent::DeviceProcess;
use super::protocol::{self, Start};

/// The virtio-mmio slots of a `microvm`; `q35` is given no more either.
const SLOTS: usize = 24;

/// The devices of one VM, opened.
#[derive(Default)]
pub(crate) struct DevicePlan {
    /// For QEMU's command line.
    pub(crate) arguments: Vec<String>,
    /// QEMU's, by number.
    pub(crate) descriptors: Vec<(RawFd, OwnedFd)>,
    /// The caller's end of the socket device.
    pub(crate) vsock: Option<VsockControl>,
    setups: Vec<DeviceSetup>,
    /// The device process's.
    handed: Vec<OwnedFd>,
}

/// Checks the devices of `spec` by opening what they name.
///
/// # Errors
/// Names the setting.
pub(crate) fn check(spec: &VmSpec) -> Result<()> {
    check_count(spec)?;
    OpenDevices::open(spec).map(drop)
}

/// Refuses more devices than a machine has places for.
pub(crate) fn check_count(spec: &VmSpec) -> Result<()> {
    let devices = 1 // entropy
        + usize::from(spec.console.enabled)
        + spec.disks.len()
        + spec.shares.len()
        + usize::from(spec.network.is_some())
        + usize::from(spec.vsock.is_some())
        + usize::from(spec.balloon);
    if devices <= SLOTS {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("{devices} devices (disks, shares, console and the like)"),
        BackendKind::Qemu,
        format!("use at most {SLOTS} in all"),
    ))
}

impl DevicePlan {
    /// Opens the devices of `spec` for a machine with the bus `bus`; QEMU's descriptors get numbers
    /// from `first` on. Blocks on the file system.
    ///
    /// # Errors
    /// Names the setting. Nothing is left open then.
    pub(crate) fn open(spec: &VmSpec, bus: Bus, first: RawFd) -> Result<Self> {
        check_count(spec)?;
        let opened = OpenDevices::open(spec)?;
        let mut plan = Self {
            vsock: opened.vsock,
            ..Self::default()
        };
        for (setup, files) in opened.devices {
            plan.add(setup, files, bus, first)?;
        }
        if plan.handed.len() > MAX_DESCRIPTORS {
            return Err(Error::unsupported(
                format!("devices of {} files and directories", plan.handed.len()),
                BackendKind::Qemu,
                "use fewer disks with backing files",
            ));
        }
        if !plan.setups.is_empty() {
            plan.arguments.extend(arguments::shared_memory(spec.memory));
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        setup: DeviceSetup,
        files: Vec<OwnedFd>,
        bus: Bus,
        first: RawFd,
    ) -> Result<()> {
        if setup == DeviceSetup::Balloon {
            self.arguments.extend(arguments::balloon(bus));
            return Ok(());
        }
        let count = RawFd::try_from(self.descriptors.len()).unwrap_or(RawFd::MAX);
        let number = first.saturating_add(count);
        let Some(arguments) = arguments::vhost_user(&setup, number, bus) else {
            return Err(Error::unsupported(
                format!("a device of the kind {}", setup.kind()),
                BackendKind::Qemu,
                "start the VM without it",
            ));
        };
        let (ours, theirs) = UnixStream::pair()
            .map_err(|error| Error::io("cannot make the socket of a device", error))?;
        self.arguments.extend(arguments);
        self.descriptors.push((number, theirs.into()));
        self.handed.push(ours.into());
        self.handed.extend(files);
        self.setups.push(setup);
        Ok(())
    }

    /// Starts the process that runs the devices, if it has any to run.
    ///
    /// # Errors
    /// Names what could not be started.
    pub(crate) fn start_process(&mut self) -> Result<Option<DeviceProcess>> {
        let devices = std::mem::take(&mut self.setups);
        let handed = std::mem::take(&mut self.handed);
        if devices.is_empty() {
            return Ok(None);
        }
        let message = protocol::encode_start(&Start { devices }).map_err(|error| {
            Error::io("cannot hand over the devices", std::io::Error::other(error))
        })?;
        let handed: Vec<BorrowedFd<'_>> = handed.iter().map(AsFd::as_fd).collect();
        DeviceProcess::start(&capsa_process::own_executable(), &message, &handed).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use capsa_core::{BootSpec, ShareSpec, UefiBoot, VsockSpec};

    use super::*;

    fn spec() -> VmSpec {
        VmSpec::new(BootSpec::Uefi(UefiBoot::default()))
    }

    #[test]
    fn vm_without_devices_needs_no_process_and_no_shared_memory() {
        let mut plan = DevicePlan::open(&spec(), Bus::Mmio, 10).unwrap();

        assert!(plan.arguments.is_empty());
        assert!(plan.start_process().unwrap().is_none());
    }

    #[test]
    fn socket_device_is_handed_over_and_memory_is_shared() {
        let mut spec = spec();
        spec.vsock = Some(VsockSpec::default());

        let plan = DevicePlan::open(&spec, Bus::Mmio, 10).unwrap();

        assert!(plan.vsock.is_some());
        assert_eq!(plan.descriptors[0].0, 10);
        assert!(plan.arguments.iter().any(|text| text.contains("share=on")));
    }

    #[test]
    fn more_devices_than_slots_are_unsupported() {
        let mut spec = spec();
        spec.shares = (0..SLOTS)
            .map(|index| ShareSpec::new("/tmp", format!("/{index}")))
            .collect();

        let refused = check_count(&spec);

        assert!(
            matches!(refused, Err(Error::Unsupported { .. })),
            "{refused:?}"
        );
    }
}
