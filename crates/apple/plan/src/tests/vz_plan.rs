//! Every setting against the plan: honoured in the right object, or refused by name.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::{Path, PathBuf};

use crate::{HostLimits, MacosVersion, VzBoot, VzDisk, VzPlan, VzShare, VzVariableStore};
use capsa_core::{
    BackendKind, BootSpec, ConsoleInput, DiskAccess, DiskFormat, DiskSpec, Error, Isolation,
    LinuxBoot, MemorySize, NetworkSpec, ShareAccess, ShareSpec, UefiBoot, VmSpec, VsockSpec,
};
use proptest::prelude::*;

const BACKEND: BackendKind = BackendKind::MacosSubprocess;

fn linux() -> VmSpec {
    let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel: "/k".into(),
        initramfs: Some("/i".into()),
        command_line: "console=hvc0".into(),
    }));
    spec.console.input = ConsoleInput::Virtio;
    spec
}

fn uefi(boot: UefiBoot) -> VmSpec {
    let mut spec = linux();
    spec.boot = BootSpec::Uefi(boot);
    spec
}

fn newest_mac() -> HostLimits {
    HostLimits {
        macos: MacosVersion::new(15, 0),
        apple_processor: true,
        max_cpus: 16,
        min_memory_bytes: 4 << 20,
        max_memory_bytes: 64 << 30,
        nested_virtualization: true,
    }
}

fn unsupported(result: Result<impl std::fmt::Debug, Error>) -> String {
    match result {
        Err(Error::Unsupported {
            setting,
            backend: BACKEND,
            fix,
        }) if !fix.is_empty() => setting,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_setting_ends_in_its_object() {
    // Arrange
    let mut spec = linux();
    spec.cpus = 4;
    spec.memory = MemorySize::gib(2);
    let mut read_only = DiskSpec::new("/root.img");
    read_only.access = DiskAccess::ReadOnly;
    read_only.serial = Some("root".into());
    spec.disks = vec![read_only, DiskSpec::new("/data.img")];
    let mut share = ShareSpec::new("/home/me", "/work");
    share.access = ShareAccess::ReadWrite;
    spec.shares = vec![ShareSpec::new("/src", "/src"), share];
    spec.network = Some(NetworkSpec {
        mac: Some("52:54:00:12:34:56".parse().unwrap()),
        ..NetworkSpec::default()
    });
    spec.vsock = Some(VsockSpec::default());
    spec.balloon = true;
    spec.rosetta = true;
    spec.nested_virtualization = true;

    // Act
    let plan = VzPlan::new(&spec, BACKEND).unwrap();

    // Assert
    assert_eq!((plan.cpus, plan.memory_bytes), (4, 2 << 30));
    assert_eq!(
        plan.boot,
        VzBoot::Linux {
            kernel: "/k".into(),
            initramfs: Some("/i".into()),
            command_line: "console=hvc0".into()
        }
    );
    assert_eq!(
        plan.disks,
        [
            VzDisk {
                path: "/root.img".into(),
                read_only: true,
                identifier: Some("root".into())
            },
            VzDisk {
                path: "/data.img".into(),
                read_only: false,
                identifier: None
            },
        ]
    );
    let share = |tag: &str, path: &str, read_only| VzShare {
        tag: tag.into(),
        path: path.into(),
        read_only,
    };
    assert_eq!(
        plan.shares,
        [
            share("share0", "/src", true),
            share("share1", "/home/me", false)
        ]
    );
    assert_eq!(
        plan.network.unwrap().mac.unwrap().to_string(),
        "52:54:00:12:34:56"
    );
    assert!(plan.console && plan.vsock && plan.balloon && plan.nested_virtualization);
    assert_eq!(plan.rosetta.as_deref(), Some("rosetta"));
}

#[test]
fn a_plain_vm_has_nothing_that_was_not_asked_for() {
    let mut spec = linux();
    spec.console.enabled = false;
    let plan = VzPlan::new(&spec, BACKEND).unwrap();
    assert!(!plan.console && !plan.vsock && !plan.balloon && !plan.nested_virtualization);
    assert!(plan.network.is_none() && plan.rosetta.is_none());
    assert!(plan.disks.is_empty() && plan.shares.is_empty());
    assert!(plan.requirements().is_empty());
}

#[test]
fn variable_store_is_kept_where_a_path_is_given() {
    let kept = UefiBoot {
        firmware: None,
        variable_store: Some("/vars".into()),
    };
    let store = |boot| VzPlan::new(&uefi(boot), BACKEND).unwrap().boot;
    assert_eq!(
        store(kept),
        VzBoot::Efi {
            store: VzVariableStore::Kept("/vars".into())
        }
    );
    assert_eq!(
        store(UefiBoot::default()),
        VzBoot::Efi {
            store: VzVariableStore::Forgotten
        }
    );
}

#[test]
fn what_the_framework_cannot_honour_is_refused_by_name() {
    let mut cases: Vec<(VmSpec, &str)> = Vec::new();
    let mut case = |change: &dyn Fn(&mut VmSpec), word| {
        let mut spec = linux();
        change(&mut spec);
        cases.push((spec, word));
    };
    case(
        &|s| s.console.input = ConsoleInput::Serial,
        "serial console",
    );
    case(
        &|s| s.memory = MemorySize::bytes((64 << 20) + 4096),
        "memory",
    );
    case(
        &|s| s.isolation = Isolation::Required,
        "isolation: required",
    );
    case(
        &|s| s.isolation = Isolation::InProcess,
        "isolation: in-process",
    );
    case(
        &|s| {
            s.vsock = Some(VsockSpec {
                cid: Some(77),
                ..VsockSpec::default()
            });
        },
        "context identifier 77",
    );
    case(
        &|s| {
            let mut disk = DiskSpec::new("/d");
            disk.format = Some(DiskFormat::Qcow2);
            s.disks = vec![disk];
        },
        "Qcow2",
    );
    case(
        &|s| {
            let mut disk = DiskSpec::new("/d");
            disk.access = DiskAccess::Overlay { layer: None };
            s.disks = vec![disk];
        },
        "overlays",
    );
    case(
        &|s| {
            s.boot = BootSpec::Uefi(UefiBoot {
                firmware: Some("/OVMF.fd".into()),
                variable_store: None,
            });
        },
        "firmware",
    );
    for (spec, word) in cases {
        let setting = unsupported(VzPlan::new(&spec, BACKEND));
        assert!(setting.contains(word), "{word:?} is not in {setting:?}");
    }
}

#[test]
fn in_process_isolation_is_what_the_native_backend_has() {
    let mut spec = linux();
    spec.isolation = Isolation::InProcess;
    assert!(VzPlan::new(&spec, BackendKind::MacosNative).is_ok());
}

#[cfg(unix)]
#[test]
fn paths_that_are_not_utf8_are_refused_with_their_setting() {
    use std::os::unix::ffi::OsStrExt;
    let bad = || PathBuf::from(std::ffi::OsStr::from_bytes(b"/\xff"));
    let mut disk = linux();
    disk.disks = vec![DiskSpec::new(bad())];
    let mut share = linux();
    share.shares = vec![ShareSpec::new(bad(), "/mnt")];
    let store = uefi(UefiBoot {
        firmware: None,
        variable_store: Some(bad()),
    });
    for (spec, name) in [
        (disk, "disk 0"),
        (share, "share 0"),
        (store, "variable_store"),
    ] {
        let setting = unsupported(VzPlan::new(&spec, BACKEND));
        assert!(setting.contains(name), "{setting}");
    }
}

#[test]
fn tags_that_are_taken_or_too_long_are_invalid_settings() {
    let tagged = |tag: &str| {
        let mut share = ShareSpec::new("/a", format!("/{}", tag.len()));
        share.tag = Some(tag.to_owned());
        share
    };
    let mut long = linux();
    long.shares = vec![tagged(&"t".repeat(37))];
    let mut taken = linux();
    taken.shares = vec![ShareSpec::new("/a", "/a"), tagged("share0")];
    let mut rosetta = linux();
    rosetta.rosetta = true;
    rosetta.shares = vec![tagged("rosetta")];
    for spec in [long, taken, rosetta] {
        let refused = VzPlan::new(&spec, BACKEND);
        assert!(
            matches!(refused, Err(Error::InvalidSetting { .. })),
            "{refused:?}"
        );
    }
}

#[test]
fn each_requirement_is_checked_against_the_mac_at_hand() {
    let change = |change: &dyn Fn(&mut VmSpec)| {
        let mut spec = linux();
        change(&mut spec);
        VzPlan::new(&spec, BACKEND).unwrap()
    };
    let mac = |change: &dyn Fn(&mut HostLimits)| {
        let mut host = newest_mac();
        change(&mut host);
        host
    };
    let cases = [
        (
            VzPlan::new(&uefi(UefiBoot::default()), BACKEND).unwrap(),
            mac(&|m| m.macos = MacosVersion::new(12, 6)),
            "UEFI boot on macOS 12.6",
        ),
        (
            change(&|s| s.rosetta = true),
            mac(&|m| m.apple_processor = false),
            "Rosetta on a Mac with an Intel processor",
        ),
        (
            change(&|s| s.nested_virtualization = true),
            mac(&|m| m.macos = MacosVersion::new(14, 7)),
            "nested virtualization on macOS 14.7",
        ),
        (
            change(&|s| s.nested_virtualization = true),
            mac(&|m| m.nested_virtualization = false),
            "nested virtualization on this processor",
        ),
        (change(&|s| s.cpus = 17), newest_mac(), "17 CPUs"),
        (
            change(&|s| s.memory = MemorySize::gib(65)),
            newest_mac(),
            "66560 MiB of memory",
        ),
    ];
    for (plan, host, expected) in cases {
        assert_eq!(unsupported(plan.check_host(&host, BACKEND)), expected);
    }
    let mut all = linux();
    all.rosetta = true;
    all.nested_virtualization = true;
    let plan = VzPlan::new(&all, BACKEND).unwrap();
    assert!(plan.check_host(&newest_mac(), BACKEND).is_ok());
}

proptest! {
    #[test]
    fn any_value_is_carried_as_it_was_or_refused(
        kernel in ".{0,20}",
        line in ".{0,40}",
        disk in ".{0,20}",
        share in ".{0,20}",
        tag in proptest::option::of(".{0,40}"),
        memory in 0_u64..(1 << 40),
        cpus in 0_u32..100,
    ) {
        let mut spec = linux();
        spec.cpus = cpus;
        spec.memory = MemorySize::bytes(memory);
        spec.boot = BootSpec::Linux(LinuxBoot {
            kernel: kernel.clone().into(),
            initramfs: None,
            command_line: line.clone(),
        });
        spec.disks = vec![DiskSpec::new(&disk)];
        let mut shared = ShareSpec::new(&share, "/mnt");
        shared.tag = tag.clone();
        spec.shares = vec![shared];

        if let Ok(plan) = VzPlan::new(&spec, BACKEND) {
            prop_assert_eq!(plan.memory_bytes, memory);
            prop_assert_eq!(plan.cpus, cpus);
            prop_assert_eq!(plan.disks[0].path.as_path(), Path::new(&disk));
            prop_assert_eq!(plan.shares[0].path.as_path(), Path::new(&share));
            prop_assert!(!disk.is_empty() && !kernel.contains('\0') && memory % (1 << 20) == 0);
            let VzBoot::Linux { command_line, .. } = plan.boot else { panic!() };
            prop_assert_eq!(command_line, line);
            if let Some(tag) = tag {
                prop_assert_eq!(&plan.shares[0].tag, &tag);
            }
        }
    }
}
