//! From a VM's specification to what the monitor is handed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use capsa_core::{
    BackendKind, CommandLine, ConsoleInput, Error, Isolation, MacAddress, NetworkSpec, Result,
    VmSpec,
};
use capsa_process::OpenDevices;
use capsa_process::console::ConsolePorts;
use capsa_virtio::net::{NetConfig, frame_sockets};
use capsa_virtio::setup::DeviceSetup;
use capsa_virtio::vsock::ControlSocket as VsockControl;

use crate::host_check;
use crate::machine::layout::VIRTIO_IRQS;
use crate::machine::{DeviceConfig, DeviceDiscovery, MachineConfig};
use crate::protocol::Start;

/// A guest's hardware address where none is given: it is alone on its network then.
const DEFAULT_MAC: MacAddress = MacAddress([0x52, 0xca, 0, 0, 0, 0x02]);

/// A start message, its descriptors, and the caller's ends of the console.
pub(crate) struct Plan {
    pub(crate) start: Start,
    descriptors: Vec<OwnedFd>,
    pub(crate) console: Option<ConsolePorts>,
    pub(crate) vsock: Option<VsockControl>,
    /// The network's end of the interface's frame socket.
    pub(crate) network: Option<OwnedFd>,
}

impl Plan {
    /// Opens everything that the monitor needs.
    ///
    /// # Errors
    /// Names the file that cannot be opened.
    pub(crate) fn new(spec: &VmSpec) -> Result<Self> {
        let boot = host_check::linux_boot(spec)?;
        let kernel = File::open(&boot.kernel).map_err(|error| {
            Error::file(
                "kernel",
                &boot.kernel,
                format!("it cannot be read: {error}"),
                "check it",
            )
        })?;
        let mut descriptors = vec![host_check::open_kvm()?, kernel.into()];
        if let Some(path) = &boot.initramfs {
            descriptors.push(host_check::open_initramfs(path)?.0.into());
        }
        let sockets = |error| Error::io("cannot make the console's sockets", error);
        let mut devices = Vec::new();
        let console = if spec.console.enabled {
            let (ports, serial, virtio) = console_sockets(spec.console.input).map_err(sockets)?;
            descriptors.extend([serial, virtio]);
            devices.push(DeviceConfig::Console);
            Some(ports)
        } else {
            None
        };
        devices.push(DeviceConfig::Rng);
        let opened = OpenDevices::open(spec)?;
        for (setup, files) in opened.devices {
            devices.push(DeviceConfig::Virtio(setup));
            descriptors.extend(files);
        }
        let network = match &spec.network {
            Some(network) => {
                let (setup, theirs, ours) = open_interface(network)?;
                devices.push(DeviceConfig::Virtio(setup));
                descriptors.push(theirs);
                Some(ours)
            }
            None => None,
        };
        check_count(devices.len())?;
        let machine = MachineConfig {
            vcpus: spec.cpus,
            memory: spec.memory.as_bytes(),
            command_line: command_line(&boot.command_line)?,
            discovery: DeviceDiscovery::Auto,
            serial: console.is_some(),
            devices,
        };
        let initramfs = boot.initramfs.is_some();
        let strict = spec.isolation == Isolation::Required;
        Ok(Self {
            start: Start {
                machine,
                initramfs,
                strict,
            },
            descriptors,
            console,
            vsock: opened.vsock,
            network,
        })
    }

    /// What goes beside the start message.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }
}

/// The interface, its end of the frame socket, and the network's.
fn open_interface(spec: &NetworkSpec) -> Result<(DeviceSetup, OwnedFd, OwnedFd)> {
    let (ours, theirs) = frame_sockets()
        .map_err(|error| Error::io("cannot make the network interface's sockets", error))?;
    let config = NetConfig {
        mac: spec.mac.unwrap_or(DEFAULT_MAC).0,
        mtu: spec.mtu(),
    };
    config.check().map_err(|error| {
        Error::invalid_setting("network", config.mtu, error.to_string(), "change it")
    })?;
    Ok((DeviceSetup::Net(config), theirs, ours))
}

/// Checks the devices of `spec` by opening what they name.
///
/// # Errors
/// Names the setting.
pub(crate) fn check_devices(spec: &VmSpec) -> Result<()> {
    let others = 1 + usize::from(spec.console.enabled) + usize::from(spec.network.is_some());
    check_count(OpenDevices::open(spec)?.devices.len() + others)
}

/// Refuses more devices than a machine has interrupt lines for.
fn check_count(devices: usize) -> Result<()> {
    let most = VIRTIO_IRQS.len();
    if devices <= most {
        return Ok(());
    }
    Err(Error::unsupported(
        format!("{devices} devices (disks, shares, console and the like)"),
        BackendKind::Kvm,
        format!("use at most {most} in all"),
    ))
}

/// The caller's ends, and the guest's of the serial port and of the virtio console.
fn console_sockets(input: ConsoleInput) -> io::Result<(ConsolePorts, OwnedFd, OwnedFd)> {
    let (serial, guest_serial) = UnixStream::pair()?;
    let (virtio, guest_virtio) = UnixStream::pair()?;
    guest_virtio.set_nonblocking(true)?;
    let ports = ConsolePorts {
        serial,
        virtio: Some(virtio),
        input,
    };
    Ok((ports, guest_serial.into(), guest_virtio.into()))
}

/// Adds what this machine has and has not to the kernel's parameters.
pub(crate) fn command_line(given: &str) -> Result<String> {
    let mut line = CommandLine::new(given)?;
    // A panic ends the machine instead of hanging it.
    line.default_parameter("panic=-1");
    // There is no PCI bus; the look for one costs dozens of exits.
    line.default_parameter("pci=off");
    // KVM's timers need no check, which waits for ten ticks.
    line.default_parameter("no_timer_check");
    // No keyboard controller either.
    line.default_parameter("i8042.noaux");
    line.default_parameter("i8042.nokbd");
    // One serial port, which is not looked for where nobody talks through it.
    line.default_parameter(if uses_serial(&line) {
        "8250.nr_uarts=1"
    } else {
        "8250.nr_uarts=0"
    });
    Ok(line.finish()?)
}

fn uses_serial(line: &CommandLine) -> bool {
    let mut parameters = line.parameters();
    // A kernel that is told of no console takes the serial port if it is there.
    !line.has("console") || parameters.any(|p| p.contains("ttyS") || p.contains("uart"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_port_is_looked_for_only_where_it_is_used() {
        for (given, ports) in [
            ("console=hvc0", 0),
            ("console=ttyS0", 1),
            ("console=ttyS0 console=hvc0", 1),
            ("earlycon=uart8250,io,0x3f8 console=hvc0", 1),
            ("", 1),
        ] {
            let line = command_line(given).unwrap();
            assert!(line.contains(&format!("8250.nr_uarts={ports}")), "{line}");
        }
    }

    #[test]
    fn the_caller_s_parameters_win() {
        let line = command_line("panic=5 console=hvc0 8250.nr_uarts=4").unwrap();
        assert!(
            !line.contains("panic=-1") && !line.contains("nr_uarts=0"),
            "{line}"
        );
    }

    #[test]
    fn a_line_that_is_too_long_with_the_defaults_is_refused() {
        let given = "x".repeat(capsa_core::MAX_COMMAND_LINE_BYTES);
        assert!(matches!(command_line(&given), Err(Error::CommandLine(_))));
    }
}
