//! VMs that boot by UEFI firmware: the `q35` machine with two flash chips, the firmware in one and its
//! variables in the other.
//!
//! The disks are QEMU's own virtio block devices here, opened, locked and handed over as descriptors
//! like everything else.

mod arguments;
mod disks;
mod firmware;
mod variables;

use std::os::fd::{OwnedFd, RawFd};

use capsa_core::{BackendKind, DiskLimits, Error, MemorySize, Result, UefiBoot, VmSpec};

use crate::arguments::Accelerator;
use crate::uefi::disks::Disk;
use crate::uefi::firmware::Firmware;

/// The descriptor of the firmware; the variables follow, and then the disks' images.
const FIRMWARE: RawFd = 8;
const VARIABLES: RawFd = 9;
const FIRST_IMAGE: RawFd = 10;

/// The least memory in which Debian's firmware gets to its boot manager.
const MIN_MEMORY: MemorySize = MemorySize::mib(128);

/// What QEMU is started with, apart from its connections to the caller.
pub(crate) struct Machine {
    pub(crate) arguments: Vec<String>,
    pub(crate) descriptors: Vec<(RawFd, OwnedFd)>,
}

/// Checks everything that can be checked without changing anything.
///
/// # Errors
/// Each names the setting and the fix.
pub(crate) fn check(spec: &VmSpec, boot: &UefiBoot) -> Result<()> {
    check_spec(spec)?;
    let firmware = Firmware::find(boot.firmware.as_deref())?;
    variables::check(boot.variable_store.as_deref(), &firmware)?;
    for disk in &spec.disks {
        disks::check(disk)?;
    }
    Ok(())
}

fn check_spec(spec: &VmSpec) -> Result<()> {
    let refuse = |setting, fix| Err(Error::unsupported(setting, BackendKind::Qemu, fix));
    if spec.memory < MIN_MEMORY {
        return Err(Error::invalid_setting(
            "memory",
            spec.memory,
            "the UEFI firmware does not start in less than 128 MiB",
            "ask for at least 128M",
        ));
    }
    let fix = "boot a Linux kernel directly, with LinuxBootConfig";
    if !spec.shares.is_empty() {
        return refuse("directory shares with UEFI boot", fix);
    }
    if spec
        .disks
        .iter()
        .any(|disk| disk.limits != DiskLimits::default())
    {
        return refuse("rate limits of disks with UEFI boot", fix);
    }
    if spec.network.is_some() {
        return refuse("a network interface with UEFI boot", fix);
    }
    if spec.balloon {
        return refuse("a memory balloon with UEFI boot", fix);
    }
    Ok(())
}

/// Opens everything, makes the variable store where it is missing, and writes the command line.
///
/// # Errors
/// As [`check`].
pub(crate) fn machine(
    spec: &VmSpec,
    boot: &UefiBoot,
    accelerator: Accelerator,
    sandbox: bool,
) -> Result<Machine> {
    check_spec(spec)?;
    let firmware = Firmware::find(boot.firmware.as_deref())?;
    let variables = variables::open(boot.variable_store.as_deref(), &firmware)?;
    let mut descriptors: Vec<(RawFd, OwnedFd)> = vec![
        (FIRMWARE, firmware.file.into()),
        (VARIABLES, variables.into()),
    ];
    let mut next = FIRST_IMAGE;
    let mut disks = Vec::new();
    for disk in &spec.disks {
        let (disk, files) = Disk::open(disk, next)?;
        for file in files {
            descriptors.push((next, file));
            next += 1;
        }
        disks.push(disk);
    }
    let arguments = arguments::arguments(spec, accelerator, sandbox, &disks);
    Ok(Machine {
        arguments,
        descriptors,
    })
}

#[cfg(test)]
mod tests {
    use capsa_core::{BootSpec, NetworkSpec, ShareSpec};

    use super::*;

    fn refusal(change: impl FnOnce(&mut VmSpec)) -> String {
        let mut spec = VmSpec::new(BootSpec::Uefi(UefiBoot::default()));
        change(&mut spec);
        check_spec(&spec).unwrap_err().to_string()
    }

    #[test]
    fn settings_that_the_uefi_machine_lacks_are_refused_by_name() {
        let share = ShareSpec::new("/a", "/a");
        assert!(refusal(|spec| spec.shares.push(share)).contains("directory shares with UEFI"));
        let network = NetworkSpec::default();
        assert!(refusal(|spec| spec.network = Some(network)).contains("network interface"));
        assert!(refusal(|spec| spec.balloon = true).contains("a memory balloon"));
    }

    #[test]
    fn memory_too_small_for_the_firmware_is_refused_with_what_it_needs() {
        let text = refusal(|spec| spec.memory = MemorySize::mib(64));
        assert!(text.starts_with("memory: 64 MiB"), "{text}");
        assert!(text.contains("at least 128M"), "{text}");
    }
}
