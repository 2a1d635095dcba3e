//! The command line of a `q35` machine with UEFI firmware.

use std::os::fd::RawFd;

use capsa_core::VmSpec;
use serde_json::json;

use super::disks::{Disk, descriptor_set};
use super::{FIRMWARE, VARIABLES};
use crate::arguments::{Accelerator, Arguments, common, console_sockets};

/// The arguments that follow the program's name.
pub(super) fn arguments(
    spec: &VmSpec,
    accelerator: Accelerator,
    sandbox: bool,
    disks: &[Disk],
) -> Vec<String> {
    let mut list = Arguments::default();
    // Without system management mode, which only secure boot needs and emulation pays for.
    list.add(
        "-machine",
        "q35,smm=off,vmport=off,pflash0=firmware,pflash1=variables",
    );
    common(&mut list, spec, accelerator, sandbox);
    let images = disks.iter().flat_map(Disk::descriptors);
    for descriptor in [FIRMWARE, VARIABLES].into_iter().chain(images) {
        list.add("-add-fd", format!("fd={descriptor},set={descriptor}"));
    }
    list.add("-blockdev", flash("firmware", FIRMWARE, true));
    list.add("-blockdev", flash("variables", VARIABLES, false));
    for (index, disk) in disks.iter().enumerate() {
        let name = format!("disk{index}");
        list.add("-blockdev", disk.node(&name).to_string());
        list.add("-device", disk.device(&name).to_string());
    }
    if console_sockets(&mut list, spec) {
        list.add("-device", "virtio-serial-pci");
        list.add("-device", "virtconsole,chardev=console");
    }
    list.add("-device", "virtio-rng-pci");
    // Without its boot ROM, which is a package of its own.
    crate::network::add(&mut list, spec, "virtio-net-pci,romfile=");
    list.add("-device", "pvpanic");
    list.into_list()
}

fn flash(name: &str, descriptor: RawFd, read_only: bool) -> String {
    let node = json!({
        "node-name": name,
        "driver": "raw",
        "read-only": read_only,
        "file": {
            "driver": "file",
            "filename": descriptor_set(descriptor),
            "read-only": read_only,
            "locking": "off",
        },
    });
    node.to_string()
}

#[cfg(test)]
mod tests {
    use capsa_core::{BootSpec, DiskSpec, UefiBoot};

    use super::*;

    fn list(change: impl FnOnce(&mut VmSpec), disks: &[Disk]) -> Vec<String> {
        let mut spec = VmSpec::new(BootSpec::Uefi(UefiBoot::default()));
        change(&mut spec);
        arguments(&spec, Accelerator::Tcg, true, disks)
    }

    fn has(list: &[String], name: &str, part: &str) -> bool {
        list.windows(2)
            .any(|pair| pair[0] == name && pair[1].contains(part))
    }

    #[test]
    fn firmware_is_read_only_and_variables_are_not() {
        let list = list(|_| {}, &[]);

        assert!(has(&list, "-machine", "pflash0=firmware,pflash1=variables"));
        assert!(has(&list, "-blockdev", "/dev/fdset/8"));
        let variables = list.iter().find(|value| value.contains("fdset/9")).unwrap();
        assert!(!variables.contains("\"read-only\":true"), "{variables}");
        assert!(has(&list, "-sandbox", "spawn=deny"));
        assert!(!has(&list, "-kernel", ""));
    }

    #[test]
    fn every_image_of_a_disk_is_handed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![0; 512]).unwrap();
        let mut spec = DiskSpec::new(path);
        spec.access = capsa_core::DiskAccess::Overlay { layer: None };
        let (disk, _files) = Disk::open(&spec, 10).unwrap();

        let list = list(|_| {}, &[disk]);

        for descriptor in [8, 9, 10, 11] {
            assert!(has(&list, "-add-fd", &format!("fd={descriptor},set=")));
        }
        assert!(has(&list, "-device", "virtio-blk-pci"));
    }

    #[test]
    fn vm_without_console_has_no_serial_port_to_speak_of() {
        let list = list(|spec| spec.console.enabled = false, &[]);

        assert!(has(&list, "-serial", "none"));
        assert!(!has(&list, "-device", "virtconsole"));
    }
}
