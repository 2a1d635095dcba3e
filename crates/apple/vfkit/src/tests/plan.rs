//! The plan against vfkit's own parser: the recorded answers of the real one, and a model of it that
//! is held to those answers.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use crate::{MAX_SOCKET_PATH_BYTES, Surroundings, VfkitPlan, VsockDirection};
use capsa_core::{
    BackendKind, BootSpec, ConsoleInput, DiskAccess, DiskFormat, DiskSpec, Error, Isolation,
    LinuxBoot, MemorySize, NetworkSpec, ShareAccess, ShareSpec, UefiBoot, VmSpec, VsockSpec,
};
use proptest::prelude::*;
use serde_json::Value;
use support::{Parsed, parse};

const RECORDED: &str = include_str!("../../tests/fixtures/vfkit-argv.json");

fn surroundings(run_directory: &str) -> Surroundings {
    Surroundings {
        run_directory: run_directory.into(),
        variable_store_exists: false,
    }
}

fn linux() -> VmSpec {
    let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel: "vmlinuz".into(),
        initramfs: Some("initrd".into()),
        command_line: "console=hvc0 quiet".into(),
    }));
    spec.console.input = ConsoleInput::Virtio;
    spec
}

fn uefi(variable_store: Option<&str>) -> VmSpec {
    let mut spec = linux();
    spec.boot = BootSpec::Uefi(UefiBoot {
        firmware: None,
        variable_store: variable_store.map(PathBuf::from),
    });
    spec
}

fn plan(spec: &VmSpec) -> Result<VfkitPlan, Error> {
    VfkitPlan::new(spec, &surroundings("/run/vm"))
}

fn arguments(plan: &VfkitPlan) -> Vec<String> {
    plan.arguments
        .iter()
        .map(|argument| argument.to_str().unwrap().to_owned())
        .collect()
}

fn parsed(spec: &VmSpec) -> Parsed {
    parse(&arguments(&plan(spec).unwrap())).unwrap()
}

fn refusal(spec: &VmSpec) -> (String, String) {
    match plan(spec) {
        Err(Error::Unsupported {
            setting,
            backend: BackendKind::Vfkit,
            fix,
        }) => (setting, fix),
        other => panic!("{other:?}"),
    }
}

fn recorded(name: &str) -> Value {
    let cases: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    cases
        .into_iter()
        .find(|case| case["name"] == name)
        .unwrap_or_else(|| panic!("no recorded case {name}"))
}

fn recorded_arguments(case: &Value) -> Vec<String> {
    let arguments = case["argv"].as_array().unwrap();
    arguments
        .iter()
        .map(|argument| argument.as_str().unwrap().to_owned())
        .collect()
}

/// The device values of a plan, without those that every plan has.
fn device_values(spec: &VmSpec) -> Vec<String> {
    let arguments = arguments(&plan(spec).unwrap());
    arguments
        .windows(2)
        .filter(|pair| pair[0] == "--device")
        .map(|pair| pair[1].clone())
        .filter(|value| value != "virtio-rng" && value != "virtio-serial,pty")
        .collect()
}

/// Whether the real vfkit accepted this `--device` value.
fn was_accepted(value: &str) -> bool {
    let cases: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    cases.iter().any(|case| {
        case["accepted"] == true
            && recorded_arguments(case)
                .windows(2)
                .any(|pair| pair[0] == "--device" && pair[1] == value)
    })
}

#[test]
fn vfkit_model_agrees_with_the_real_parser() {
    let cases: Vec<Value> = serde_json::from_str(RECORDED).unwrap();
    assert_eq!(cases.len(), 41);
    // The model does not open files.
    let by_content = ["blk qcow2", "blk missing", "blk empty file"];
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        if by_content.contains(&name) {
            continue;
        }
        let ours = parse(&recorded_arguments(case));
        assert_eq!(ours.is_ok(), case["accepted"] == true, "{name}: {ours:?}");
        let Ok(ours) = ours else { continue };
        let theirs = &case["parsed"];
        let config = &theirs["config"];
        assert_eq!(Value::from(ours.cpus), config["vcpus"], "{name}");
        assert_eq!(
            Value::from(ours.memory_mib << 20),
            config["memoryBytes"],
            "{name}"
        );
        assert_eq!(ours.rest_uri, theirs["restfulURI"], "{name}");
        assert_eq!(ours.nested, config["nested"] == true, "{name}");
        let boot = &config["bootloader"];
        if boot["kind"] == "linuxBootloader" {
            assert_eq!(ours.kernel, boot["vmlinuzPath"], "{name}");
            assert_eq!(ours.initrd, boot["initrdPath"], "{name}");
            assert_eq!(ours.command_line, boot["kernelCmdLine"], "{name}");
        } else if boot["kind"] == "efiBootloader" {
            let store = ours.variable_store.clone().unwrap_or_default();
            assert_eq!(store, boot["efiVariableStorePath"], "{name}");
            assert_eq!(
                ours.create_store,
                boot["createVariableStore"] == true,
                "{name}"
            );
        }
        let theirs = config["devices"].as_array().cloned().unwrap_or_default();
        assert_eq!(ours.devices.len(), theirs.len(), "{name}");
        for (ours, theirs) in ours.devices.iter().zip(&theirs) {
            for (key, their_key) in [
                ("path", "imagePath"),
                ("deviceId", "deviceIdentifier"),
                ("sharedDir", "sharedDir"),
                ("mountTag", "mountTag"),
                ("mac", "macAddress"),
                ("unixSocketPath", "unixSocketPath"),
                ("socketURL", "socketURL"),
                ("logFilePath", "logFile"),
            ] {
                let their_value = theirs[their_key].as_str().unwrap_or_default();
                assert_eq!(ours.get(key), their_value, "{name}: {key}");
            }
            for (key, their_key) in [
                ("readonly", "readOnly"),
                ("pty", "usesPty"),
                ("stdio", "usesStdio"),
                ("nat", "nat"),
                ("install", "installRosetta"),
            ] {
                assert_eq!(ours.has(key), theirs[their_key] == true, "{name}: {key}");
            }
        }
    }
}

#[test]
fn linux_boot_is_written_as_the_real_vfkit_accepted_it() {
    let mut spec = linux();
    spec.cpus = 2;
    spec.memory = MemorySize::gib(1);
    spec.console.enabled = false;

    let ours = arguments(&plan(&spec).unwrap());

    let recorded = recorded_arguments(&recorded("linux minimal"));
    assert_eq!(ours[..recorded.len()], recorded);
}

#[test]
fn every_device_is_written_as_the_real_vfkit_accepted_it() {
    let mut spec = linux();
    let mut disk = DiskSpec::new("disk.img");
    spec.disks = vec![disk.clone()];
    disk.access = DiskAccess::ReadOnly;
    spec.disks.push(disk.clone());
    disk.access = DiskAccess::ReadWrite;
    disk.serial = Some("vdroot".into());
    spec.disks.push(disk);
    let mut share = ShareSpec::new("/tmp", "/mnt");
    share.access = ShareAccess::ReadWrite;
    spec.shares = vec![share];
    spec.network = Some(NetworkSpec::default());
    spec.rosetta = true;

    let values = device_values(&spec);

    assert_eq!(values.len(), 6);
    for value in &values {
        assert!(was_accepted(value), "{value}");
    }
    assert!(was_accepted("virtio-rng") && was_accepted("virtio-serial,pty"));
}

#[test]
fn vsock_ports_get_a_socket_each_in_the_direction_asked_for() {
    let mut spec = linux();
    spec.vsock = Some(VsockSpec {
        cid: None,
        listen_ports: vec![5000],
        connect_ports: vec![5000, 6000],
    });

    let plan = plan(&spec).unwrap();

    let wires: Vec<_> = (plan.vsock.iter())
        .map(|wire| (wire.port, wire.direction, wire.socket.to_str().unwrap()))
        .collect();
    assert_eq!(
        wires,
        [
            (5000, VsockDirection::GuestConnects, "/run/vm/l5000"),
            (5000, VsockDirection::HostConnects, "/run/vm/c5000"),
            (6000, VsockDirection::HostConnects, "/run/vm/c6000"),
        ]
    );
    assert_eq!(
        device_values(&spec)[0],
        "virtio-vsock,port=5000,socketURL=/run/vm/l5000,listen"
    );
}

#[test]
fn requests_are_taken_on_a_socket_in_the_run_directory() {
    let spec = linux();
    assert_eq!(parsed(&spec).rest_socket.unwrap(), "/run/vm/rest");
    assert_eq!(plan(&spec).unwrap().rest_socket, Path::new("/run/vm/rest"));
}

#[test]
fn nested_virtualization_and_mac_are_passed_on() {
    let mut spec = linux();
    spec.nested_virtualization = true;
    spec.network = Some(NetworkSpec {
        mac: Some("52:54:00:12:34:56".parse().unwrap()),
        ..NetworkSpec::default()
    });

    let parsed = parsed(&spec);

    assert!(parsed.nested);
    let network = parsed
        .devices
        .iter()
        .find(|d| d.kind == "virtio-net")
        .unwrap();
    assert_eq!(network.get("mac"), "52:54:00:12:34:56");
    assert_eq!(network.get("fd"), "3");
}

#[test]
fn variable_store_is_created_only_where_there_is_none() {
    let spec = uefi(Some("store"));
    let mut surroundings = surroundings("/run/vm");
    let new = parse(&arguments(&VfkitPlan::new(&spec, &surroundings).unwrap())).unwrap();
    surroundings.variable_store_exists = true;
    let old = parse(&arguments(&VfkitPlan::new(&spec, &surroundings).unwrap())).unwrap();

    assert_eq!(
        (new.variable_store.as_deref(), new.create_store),
        (Some("store"), true)
    );
    assert_eq!(
        (old.variable_store.as_deref(), old.create_store),
        (Some("store"), false)
    );
}

#[test]
fn variables_that_are_to_be_forgotten_are_kept_in_the_run_directory() {
    let parsed = parsed(&uefi(None));
    assert_eq!(parsed.variable_store.unwrap(), "/run/vm/variables");
    assert!(parsed.create_store);
}

/// Each setting that vfkit cannot honour, and a word that its refusal must hold.
#[test]
fn what_vfkit_cannot_honour_is_refused_by_name() {
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
        &|s| s.shares = vec![ShareSpec::new("/tmp", "/mnt")],
        "read-only shares",
    );
    case(
        &|s| s.vsock = Some(VsockSpec::default()),
        "vsock device without ports",
    );
    case(
        &|s| {
            s.vsock = Some(VsockSpec {
                cid: Some(4),
                listen_ports: vec![1],
                connect_ports: vec![],
            })
        },
        "context identifier 4",
    );
    case(
        &|s| {
            let mut disk = DiskSpec::new("d");
            disk.format = Some(DiskFormat::Qcow2);
            s.disks = vec![disk];
        },
        "Qcow2",
    );
    case(
        &|s| {
            let mut disk = DiskSpec::new("d");
            disk.access = DiskAccess::Overlay { layer: None };
            s.disks = vec![disk];
        },
        "overlays",
    );
    case(
        &|s| s.disks = vec![DiskSpec::new("a,b.img")],
        "comma in disk 0",
    );
    case(
        &|s| {
            let mut share = ShareSpec::new("/tmp/a,b", "/mnt");
            share.access = ShareAccess::ReadWrite;
            s.shares = vec![share];
        },
        "comma in share 0",
    );
    let boot = |kernel: &str, initramfs: Option<&str>, line: &str| {
        BootSpec::Linux(LinuxBoot {
            kernel: kernel.into(),
            initramfs: initramfs.map(PathBuf::from),
            command_line: line.into(),
        })
    };
    case(
        &|s| s.boot = boot("k", None, "console=hvc0"),
        "without an initramfs",
    );
    case(
        &|s| s.boot = boot("k", Some("i"), ""),
        "empty kernel command line",
    );
    case(
        &|s| {
            s.boot = BootSpec::Uefi(UefiBoot {
                firmware: Some("OVMF.fd".into()),
                variable_store: None,
            })
        },
        "firmware",
    );
    case(
        &|s| {
            s.boot = BootSpec::Uefi(UefiBoot {
                firmware: None,
                variable_store: Some("a,b".into()),
            })
        },
        "variable_store",
    );
    for (spec, word) in cases {
        let (setting, fix) = refusal(&spec);
        assert!(setting.contains(word), "{word:?} is not in {setting:?}");
        assert!(!fix.is_empty());
    }
}

#[cfg(unix)]
#[test]
fn path_that_is_not_utf8_is_refused_with_its_setting() {
    use std::os::unix::ffi::OsStrExt;
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(b"disk\xff.img"));
    let mut spec = linux();
    spec.disks = vec![DiskSpec::new(path)];
    let (setting, _) = refusal(&spec);
    assert!(
        setting.contains("not UTF-8") && setting.contains("disk 0"),
        "{setting}"
    );
}

#[test]
fn bad_values_are_invalid_settings() {
    let mut no_name = linux();
    no_name.disks = vec![DiskSpec::new("")];
    let mut long_serial = linux();
    let mut disk = DiskSpec::new("d");
    disk.serial = Some("x".repeat(21));
    long_serial.disks = vec![disk];
    let mut twice = linux();
    twice.vsock = Some(VsockSpec {
        cid: Some(3),
        listen_ports: vec![7, 7],
        connect_ports: vec![],
    });
    for spec in [no_name, long_serial, twice] {
        assert!(matches!(plan(&spec), Err(Error::InvalidSetting { .. })));
    }
}

#[test]
fn socket_path_at_the_limit_passes_and_one_byte_more_is_refused() {
    let longest = format!("/{}", "d".repeat(MAX_SOCKET_PATH_BYTES - 1 - "/rest".len()));
    assert!(VfkitPlan::new(&linux(), &surroundings(&longest)).is_ok());
    let error = VfkitPlan::new(&linux(), &surroundings(&format!("{longest}d"))).unwrap_err();
    assert!(error.to_string().contains("TMPDIR"), "{error}");
}

proptest! {
    /// Whatever the names are: what is accepted arrives at vfkit as it was, the rest is refused.
    #[test]
    fn values_arrive_as_they_were_or_are_refused(
        kernel in "[ -~é\"',]{1,24}",
        initramfs in "[ -~é\"',]{1,24}",
        line in "[ -~é\"',]{1,60}",
        disk in "[ -~é\"',]{1,24}",
        share in "[ -~é\"',]{1,24}",
        tag in "[!-~]{1,12}",
        memory_mib in 32_u64..100_000,
        cpus in 1_u32..=64,
    ) {
        let mut spec = linux();
        spec.cpus = cpus;
        spec.memory = MemorySize::mib(memory_mib);
        spec.boot = BootSpec::Linux(LinuxBoot {
            kernel: kernel.clone().into(),
            initramfs: Some(initramfs.clone().into()),
            command_line: line.clone(),
        });
        spec.disks = vec![DiskSpec::new(&disk)];
        let mut shared = ShareSpec::new(&share, "/mnt");
        shared.access = ShareAccess::ReadWrite;
        shared.tag = Some(tag.clone());
        spec.shares = vec![shared];
        let expressible = [&disk, &share, &tag].iter().all(|value| !value.contains(','));

        match plan(&spec) {
            Ok(plan) => {
                prop_assert!(expressible);
                let parsed = parse(&arguments(&plan)).unwrap();
                prop_assert_eq!(parsed.cpus, cpus);
                prop_assert_eq!(parsed.memory_mib, memory_mib);
                prop_assert_eq!(parsed.kernel, kernel);
                prop_assert_eq!(parsed.initrd, initramfs);
                prop_assert_eq!(parsed.command_line, line);
                prop_assert_eq!(parsed.devices[1].get("path"), disk);
                prop_assert_eq!(parsed.devices[2].get("sharedDir"), share);
                prop_assert_eq!(parsed.devices[2].get("mountTag"), tag);
            }
            Err(error) => {
                prop_assert!(!expressible, "{error}");
                let refused = matches!(error, Error::Unsupported { .. });
                prop_assert!(refused);
            }
        }
    }

    #[test]
    fn any_run_directory_gives_sockets_that_vfkit_finds_or_is_refused(
        directory in "/?[ -~é/]{0,120}",
    ) {
        if let Ok(plan) = VfkitPlan::new(&linux(), &surroundings(&directory)) {
            let socket = plan.rest_socket.to_str().unwrap();
            prop_assert!(socket.len() <= MAX_SOCKET_PATH_BYTES);
            prop_assert!(!socket.contains(['%', ',', '?', '#', ' ']));
        }
    }
}
