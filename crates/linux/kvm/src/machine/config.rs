//! What a machine is made of: plain data, so that it can be sent to the process that runs it.

use std::fs::File;
use std::os::fd::OwnedFd;

use capsa_virtio::setup::DeviceSetup;
use serde::{Deserialize, Serialize};

use super::error::ConfigError;
use super::layout::VIRTIO_IRQS;

/// The most vCPUs a machine can have.
pub const MAX_VCPUS: u32 = 64;

/// A machine, but for its files; those are in [`MachineFiles`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Guest memory in bytes: at least [`MIN_MEMORY`](super::memory::MIN_MEMORY), a multiple of 4096.
    pub memory: u64,
    /// The whole kernel command line, see [`default_command_line`]. Only the virtio device list is
    /// added to it, and only where [`DeviceDiscovery`] says so.
    pub command_line: String,
    /// How the kernel learns of its devices.
    pub discovery: DeviceDiscovery,
    /// Whether there is a serial port (COM1); its socket is [`MachineFiles::serial`].
    pub serial: bool,
    /// The virtio devices, in the order in which the guest finds them.
    pub devices: Vec<DeviceConfig>,
}

impl MachineConfig {
    /// Checks what can be checked without the host.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus {
                got: self.vcpus,
                max: MAX_VCPUS,
            });
        }
        if self.devices.len() > VIRTIO_IRQS.len() {
            return Err(ConfigError::TooManyDevices {
                got: self.devices.len(),
                max: VIRTIO_IRQS.len(),
            });
        }
        Ok(())
    }
}

/// How a kernel learns of its devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceDiscovery {
    /// By ACPI; by the command line as well where an ELF kernel's virtio-mmio driver lacks ACPI; by
    /// the command line alone where that says `acpi=off`.
    #[default]
    Auto,
    /// By ACPI tables, as distribution kernels do.
    Acpi,
    /// By `virtio_mmio.device=` parameters and MP tables, without ACPI. Such a guest cannot power
    /// off (there is no standard way without ACPI): it ends by a reset.
    CommandLine,
}

/// One virtio device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeviceConfig {
    /// A console (hvc). It takes one descriptor: a non-blocking stream socket.
    Console,
    /// An entropy source. It takes no descriptor.
    Rng,
    /// Any other device.
    Virtio(DeviceSetup),
}

impl DeviceConfig {
    /// How many descriptors it takes.
    pub fn descriptors(&self) -> usize {
        match self {
            Self::Console => 1,
            Self::Rng => 0,
            Self::Virtio(setup) => setup.descriptors(),
        }
    }
}

/// Everything a machine works on from outside. The monitor opens nothing by itself.
#[derive(Debug)]
pub struct MachineFiles {
    /// `/dev/kvm`, opened for reading and writing.
    pub kvm: OwnedFd,
    /// The kernel: an ELF `vmlinux` or a bzImage.
    pub kernel: File,
    /// The initial RAM disk.
    pub initrd: Option<File>,
    /// The serial port's stream socket, where [`MachineConfig::serial`] is set.
    pub serial: Option<OwnedFd>,
    /// The descriptors of each of [`MachineConfig::devices`], in the same order.
    pub devices: Vec<Vec<OwnedFd>>,
}

impl MachineFiles {
    pub(super) fn check(&self, config: &MachineConfig) -> Result<(), ConfigError> {
        let wanted = |setting, missing| ConfigError::Descriptor {
            setting,
            problem: if missing {
                "not handed over"
            } else {
                "handed over without it"
            },
        };
        if config.serial != self.serial.is_some() {
            return Err(wanted("serial", config.serial));
        }
        let needed = config.devices.iter().map(DeviceConfig::descriptors);
        let given = self.devices.iter().map(Vec::len);
        if !needed.clone().eq(given.clone()) {
            return Err(wanted(
                "devices",
                needed.sum::<usize>() > given.sum::<usize>(),
            ));
        }
        Ok(())
    }
}

/// Kernel parameters that fit this machine: no look for what it does not have, no wait after a
/// panic, consoles in the order given by `serial` and `hvc` (the last one is where init talks).
///
/// Add `quiet`, `root=` and the like as wanted.
pub fn default_command_line(serial: bool, hvc: bool) -> String {
    let mut words = vec![
        // A panic ends the machine instead of hanging it.
        "panic=-1",
        // Kernels with EFI support take the long way otherwise (see `boot::tables`).
        "reboot=acpi",
        // There is no PCI bus; the look for one costs dozens of exits.
        "pci=off",
        // KVM's timers need no check, which waits for ten ticks.
        "no_timer_check",
        // Keyboard controller and AT devices: nothing answers there.
        "i8042.noaux",
        "i8042.nokbd",
    ];
    words.push(if serial {
        "8250.nr_uarts=1 console=ttyS0"
    } else {
        "8250.nr_uarts=0"
    });
    if hvc {
        words.push("console=hvc0");
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig {
            vcpus: 1,
            memory: 64 << 20,
            command_line: String::new(),
            discovery: DeviceDiscovery::Auto,
            serial: false,
            devices: vec![],
        }
    }

    #[test]
    fn vcpus_outside_1_to_64_are_refused() {
        for vcpus in [0, 65, u32::MAX] {
            let config = MachineConfig { vcpus, ..config() };

            assert!(matches!(config.check(), Err(ConfigError::Vcpus { .. })));
        }
    }

    #[test]
    fn vcpus_1_and_64_are_accepted() {
        for vcpus in [1, 64] {
            assert_eq!(MachineConfig { vcpus, ..config() }.check(), Ok(()));
        }
    }

    #[test]
    fn devices_beyond_the_interrupt_lines_are_refused() {
        let config = MachineConfig {
            devices: vec![DeviceConfig::Rng; VIRTIO_IRQS.len() + 1],
            ..config()
        };

        assert!(matches!(
            config.check(),
            Err(ConfigError::TooManyDevices { .. })
        ));
    }

    #[test]
    fn message_of_too_many_vcpus_names_setting_and_range() {
        let error = MachineConfig {
            vcpus: 65,
            ..config()
        }
        .check()
        .unwrap_err();

        assert_eq!(
            error.to_string(),
            "`vcpus` is 65: a machine has 1 to 64 of them"
        );
    }
}
