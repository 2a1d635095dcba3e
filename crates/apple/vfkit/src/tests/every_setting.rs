//! Every setting of a VM against the plans of all backends for macOS: it shows in the plan, or it is
//! refused by name, or the table says whose business it is instead. A setting that is new in the
//! specification, and a new capability, fail here until the table knows them.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::time::Duration;

use crate::{Surroundings, VfkitPlan, capabilities as vfkit_capabilities};
use capsa_apple_plan::{VzPlan, vz_capabilities};
use capsa_core::{
    BackendCapabilities, BackendKind, BootSpec, CachePolicy, ConsoleInput, ConsoleSpec, DiskAccess,
    DiskFormat, DiskLimits, DiskSpec, Error, Isolation, LinuxBoot, MAX_CPUS, MemorySize,
    NetworkMode, NetworkSpec, OwnerMapping, RateLimit, Result, ShareAccess, ShareFilter, ShareSpec,
    UefiBoot, VmSpec, VsockSpec, WindowSize,
};
use proptest::prelude::*;

const BACKENDS: [BackendKind; 3] = [
    BackendKind::MacosSubprocess,
    BackendKind::MacosNative,
    BackendKind::Vfkit,
];

/// What a plan makes of a setting.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It is another plan than without.
    Planned,
    /// `Unsupported`, with this in the name of the setting.
    Refused(&'static str),
    /// It is the same plan as without; the words say who honours it.
    Elsewhere(&'static str),
}
use Fate::{Elsewhere, Planned, Refused};

/// A setting, a change that makes use of it, and what becomes of that with Virtualization.framework
/// and with vfkit.
struct Setting {
    /// `Type.field`.
    name: &'static str,
    change: fn(&mut VmSpec),
    framework: Fate,
    vfkit: Fate,
}

impl Setting {
    fn fate(&self, backend: BackendKind) -> Fate {
        match backend {
            BackendKind::Vfkit => self.vfkit,
            // The one thing in which the two backends on the framework differ.
            BackendKind::MacosNative if matches!(self.framework, Refused("in-process")) => {
                Elsewhere("the caller's process")
            }
            _ => self.framework,
        }
    }

    fn changed(&self) -> VmSpec {
        let mut spec = plain();
        (self.change)(&mut spec);
        spec
    }
}

/// A machine that has one of everything, so that each change is to one setting only.
fn plain() -> VmSpec {
    let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel: "/k".into(),
        initramfs: Some("/i".into()),
        command_line: "console=hvc0".into(),
    }));
    spec.console.input = ConsoleInput::Virtio;
    spec.disks = vec![DiskSpec::new("/d")];
    let mut share = ShareSpec::new("/s", "/mnt");
    share.access = ShareAccess::ReadWrite;
    spec.shares = vec![share];
    spec.network = Some(NetworkSpec::default());
    spec.vsock = Some(VsockSpec {
        cid: None,
        listen_ports: vec![5000],
        connect_ports: vec![],
    });
    spec
}

fn linux(spec: &mut VmSpec) -> &mut LinuxBoot {
    if !matches!(spec.boot, BootSpec::Linux(_)) {
        spec.boot = plain().boot;
    }
    match &mut spec.boot {
        BootSpec::Linux(linux) => linux,
        other => panic!("{other:?}"),
    }
}

fn uefi(boot: UefiBoot) -> BootSpec {
    BootSpec::Uefi(boot)
}

fn network(spec: &mut VmSpec) -> &mut NetworkSpec {
    spec.network.get_or_insert_default()
}

fn vsock(spec: &mut VmSpec) -> &mut VsockSpec {
    spec.vsock.get_or_insert_default()
}

/// The table.
fn settings() -> Vec<Setting> {
    let same = |name, fate, change| Setting {
        name,
        change,
        framework: fate,
        vfkit: fate,
    };
    let differ = |name, framework, vfkit, change| Setting {
        name,
        change,
        framework,
        vfkit,
    };
    const AGENT: Fate = Elsewhere("the agent in the guest, told by the library");
    const NETWORK: Fate = Elsewhere("capsa-net, told by the library");
    const BACKEND: Fate = Elsewhere("the backend's launch");
    const LIMITS: Fate = Refused("disk rate limits");
    vec![
        same("VmSpec.name", Elsewhere("the library"), |s| {
            s.name = Some("vm".into());
        }),
        same("VmSpec.cpus", Planned, |s| s.cpus = 4),
        same("VmSpec.memory", Planned, |s| s.memory = MemorySize::gib(1)),
        same("VmSpec.memory", Refused("of memory"), |s| {
            s.memory = MemorySize::bytes((64 << 20) + 4096);
        }),
        same("VmSpec.boot", Planned, |s| {
            s.boot = uefi(UefiBoot::default())
        }),
        same("VmSpec.console", Planned, |s| s.console.enabled = false),
        same("VmSpec.disks", Planned, |s| s.disks.clear()),
        same("VmSpec.shares", Planned, |s| s.shares.clear()),
        same("VmSpec.network", Planned, |s| s.network = None),
        same("VmSpec.vsock", Planned, |s| s.vsock = None),
        differ(
            "VmSpec.balloon",
            Planned,
            Refused("a memory balloon"),
            |s| {
                s.balloon = true;
            },
        ),
        same("VmSpec.nested_virtualization", Planned, |s| {
            s.nested_virtualization = true;
        }),
        same("VmSpec.rosetta", Planned, |s| s.rosetta = true),
        same("VmSpec.isolation", Refused("isolation: required"), |s| {
            s.isolation = Isolation::Required;
        }),
        same("VmSpec.isolation", Refused("in-process"), |s| {
            s.isolation = Isolation::InProcess;
        }),
        same("VmSpec.start_timeout", BACKEND, |s| {
            s.start_timeout = Some(Duration::from_secs(1));
        }),
        same("LinuxBoot.kernel", Planned, |s| {
            linux(s).kernel = "/k2".into()
        }),
        same("LinuxBoot.initramfs", Planned, |s| {
            linux(s).initramfs = Some("/i2".into());
        }),
        differ(
            "LinuxBoot.initramfs",
            Planned,
            Refused("without an initramfs"),
            |s| linux(s).initramfs = None,
        ),
        same("LinuxBoot.command_line", Planned, |s| {
            linux(s).command_line = "console=hvc0 quiet".into();
        }),
        same(
            "UefiBoot.firmware",
            Refused("a firmware of one's own"),
            |s| {
                s.boot = uefi(UefiBoot {
                    firmware: Some("/OVMF.fd".into()),
                    variable_store: None,
                });
            },
        ),
        same("UefiBoot.variable_store", Planned, |s| {
            s.boot = uefi(UefiBoot {
                firmware: None,
                variable_store: Some("/vars".into()),
            });
        }),
        same("ConsoleSpec.enabled", Planned, |s| {
            s.console.enabled = false
        }),
        same("ConsoleSpec.input", Refused("a serial console"), |s| {
            s.console.input = ConsoleInput::Serial;
        }),
        same("ConsoleSpec.window_size", AGENT, |s| {
            s.console.window_size = Some(WindowSize {
                rows: 50,
                columns: 132,
            });
        }),
        same("DiskSpec.path", Planned, |s| {
            s.disks = vec![DiskSpec::new("/d2")]
        }),
        same(
            "DiskSpec.format",
            Elsewhere("it is what a disk is anyway"),
            |s| disk(s).format = Some(DiskFormat::Raw),
        ),
        same("DiskSpec.format", Refused("Qcow2"), |s| {
            disk(s).format = Some(DiskFormat::Qcow2);
        }),
        same("DiskSpec.access", Planned, |s| {
            disk(s).access = DiskAccess::ReadOnly;
        }),
        same("DiskSpec.access", Refused("disk overlays"), |s| {
            disk(s).access = DiskAccess::Overlay { layer: None };
        }),
        same("DiskSpec.serial", Planned, |s| {
            disk(s).serial = Some("root".into());
        }),
        same(
            "DiskSpec.allow_backing_file",
            Elsewhere("a raw image has none"),
            |s| disk(s).allow_backing_file = true,
        ),
        same("DiskSpec.limits", LIMITS, |s| {
            disk(s).limits.bytes = Some(RateLimit::per_second(1));
        }),
        same("DiskLimits.bytes", LIMITS, |s| {
            disk(s).limits.bytes = Some(RateLimit::per_second(1));
        }),
        same("DiskLimits.operations", LIMITS, |s| {
            disk(s).limits.operations = Some(RateLimit::per_second(1));
        }),
        same("ShareSpec.host_path", Planned, |s| {
            share(s).host_path = "/s2".into();
        }),
        same(
            "ShareSpec.guest_path",
            Elsewhere("the guest, which mounts it"),
            |s| share(s).guest_path = "/elsewhere".into(),
        ),
        same("ShareSpec.tag", Planned, |s| {
            share(s).tag = Some("t".into())
        }),
        differ(
            "ShareSpec.access",
            Planned,
            Refused("read-only shares"),
            |s| share(s).access = ShareAccess::ReadOnly,
        ),
        same("ShareSpec.owners", Refused("share owners: Squash"), |s| {
            share(s).owners = OwnerMapping::Squash;
        }),
        same(
            "ShareSpec.owners",
            Refused("share owners: Passthrough"),
            |s| {
                share(s).owners = OwnerMapping::Passthrough;
            },
        ),
        same("ShareSpec.cache", Refused("share cache: None"), |s| {
            share(s).cache = CachePolicy::None;
        }),
        same(
            "ShareSpec.cache",
            Elsewhere("the guest, which trusts less than it may"),
            |s| share(s).cache = CachePolicy::Always,
        ),
        same("ShareSpec.filter", Refused("shares that hide files"), |s| {
            share(s).access = ShareAccess::ReadOnly;
            share(s).filter.public_only = true;
        }),
        same(
            "ShareFilter.public_only",
            Refused("shares that hide files"),
            |s| {
                share(s).access = ShareAccess::ReadOnly;
                share(s).filter.public_only = true;
            },
        ),
        same(
            "ShareFilter.hidden",
            Refused("shares that hide files"),
            |s| {
                share(s).access = ShareAccess::ReadOnly;
                share(s).filter.hidden = vec!["/s/secret".into()];
            },
        ),
        same("NetworkSpec.mac", Planned, |s| {
            network(s).mac = Some("52:54:00:12:34:56".parse().unwrap());
        }),
        same("NetworkSpec.ipv4", NETWORK, |s| {
            network(s).ipv4 = Some([10, 0, 2, 9].into());
        }),
        same("NetworkSpec.ipv6", NETWORK, |s| {
            network(s).ipv6 = Some("fd00::9".parse().unwrap());
        }),
        differ("NetworkSpec.mtu", Planned, Refused("an MTU of 9000"), |s| {
            network(s).mtu = Some(9000)
        }),
        same("NetworkSpec.mtu", Refused("an MTU of 1280"), |s| {
            network(s).mtu = Some(1280);
        }),
        same(
            "NetworkSpec.mtu",
            Elsewhere("it is what it is anyway"),
            |s| network(s).mtu = Some(1500),
        ),
        same("NetworkSpec.mode", NETWORK, |s| {
            network(s).mode = NetworkMode::Cluster("lan".into());
        }),
        same("VsockSpec.cid", Elsewhere("it is what it is anyway"), |s| {
            vsock(s).cid = Some(3);
        }),
        same("VsockSpec.cid", Refused("context identifier 77"), |s| {
            vsock(s).cid = Some(77);
        }),
        differ(
            "VsockSpec.listen_ports",
            Elsewhere("any port at any time"),
            Planned,
            |s| vsock(s).listen_ports = vec![5001],
        ),
        differ(
            "VsockSpec.connect_ports",
            Elsewhere("any port at any time"),
            Planned,
            |s| vsock(s).connect_ports = vec![6000],
        ),
    ]
}

fn disk(spec: &mut VmSpec) -> &mut DiskSpec {
    if spec.disks.is_empty() {
        spec.disks = plain().disks;
    }
    &mut spec.disks[0]
}

fn share(spec: &mut VmSpec) -> &mut ShareSpec {
    if spec.shares.is_empty() {
        spec.shares = plain().shares;
    }
    &mut spec.shares[0]
}

/// Any backend's plan as text, which two plans have in common only if they are the same.
fn plan(spec: &VmSpec, backend: BackendKind) -> Result<String> {
    if backend == BackendKind::Vfkit {
        let surroundings = Surroundings {
            run_directory: "/run/vm".into(),
            variable_store_exists: false,
        };
        VfkitPlan::new(spec, &surroundings).map(|plan| format!("{plan:?}"))
    } else {
        VzPlan::new(spec, backend).map(|plan| format!("{plan:?}"))
    }
}

fn capabilities(backend: BackendKind) -> BackendCapabilities {
    if backend == BackendKind::Vfkit {
        return vfkit_capabilities();
    }
    let mut can = vz_capabilities();
    can.in_process = backend == BackendKind::MacosNative;
    can
}

/// The names of a structure's fields. Does not compile where one is missing.
macro_rules! fields {
    ($($type:ident { $($field:ident),* $(,)? })*) => {{
        $(
            #[allow(dead_code, reason = "it is compiled, not called")]
            fn $type(value: $type) {
                let $type { $($field: _),* } = value;
            }
        )*
        [$($(concat!(stringify!($type), ".", stringify!($field))),*),*]
    }};
}

#[test]
#[allow(non_snake_case, reason = "the functions have the names of the types")]
fn every_field_of_the_specification_is_in_the_table() {
    let fields = fields! {
        VmSpec {
            name, cpus, memory, boot, console, disks, shares, network, vsock, balloon,
            nested_virtualization, rosetta, isolation, start_timeout,
        }
        LinuxBoot { kernel, initramfs, command_line }
        UefiBoot { firmware, variable_store }
        ConsoleSpec { enabled, input, window_size }
        DiskSpec { path, format, access, serial, allow_backing_file, limits }
        DiskLimits { bytes, operations }
        ShareSpec { host_path, guest_path, tag, access, owners, cache, filter }
        ShareFilter { public_only, hidden }
        NetworkSpec { mac, ipv4, ipv6, mtu, mode }
        VsockSpec { cid, listen_ports, connect_ports }
    };

    let table: BTreeSet<_> = settings().iter().map(|setting| setting.name).collect();

    assert_eq!(table, BTreeSet::from(fields));
}

#[test]
fn every_setting_is_planned_or_refused_by_name_as_the_table_says() {
    for backend in BACKENDS {
        let without = plan(&plain(), backend).unwrap();
        for setting in settings() {
            let name = setting.name;
            let with = plan(&setting.changed(), backend);
            match (setting.fate(backend), with) {
                (Planned, Ok(with)) => assert_ne!(with, without, "{backend}: {name} is forgotten"),
                (Elsewhere(whose), Ok(with)) => {
                    assert_eq!(with, without, "{backend}: {name}, left to {whose}");
                }
                (
                    Refused(word),
                    Err(Error::Unsupported {
                        setting,
                        backend: by,
                        fix,
                    }),
                ) => {
                    assert!(setting.contains(word), "{backend}: {name}: {setting}");
                    assert!(by == backend && !fix.is_empty(), "{backend}: {name}");
                }
                (fate, with) => panic!("{backend}: {name}: not {fate:?}, but {with:?}"),
            }
        }
    }
}

/// A specification that needs the capability of this name, which is that of its field; `None` for one
/// that no setting asks for.
fn needs(capability: &str) -> Option<VmSpec> {
    let mut spec = plain();
    match capability {
        "boot.linux" | "console.virtio" | "shares" | "network" | "vsock" | "disk_formats" => {}
        "boot.uefi" => spec.boot = uefi(UefiBoot::default()),
        "max_cpus" => spec.cpus = MAX_CPUS,
        "console.serial" => spec.console.input = ConsoleInput::Serial,
        "disk_overlay" => disk(&mut spec).access = DiskAccess::Overlay { layer: None },
        "disk_limits" => disk(&mut spec).limits.operations = Some(RateLimit::per_second(1)),
        "read_only_shares" => share(&mut spec).access = ShareAccess::ReadOnly,
        "share_filters" => {
            share(&mut spec).access = ShareAccess::ReadOnly;
            share(&mut spec).filter.public_only = true;
        }
        "share_owners" => share(&mut spec).owners = OwnerMapping::Squash,
        "uncached_shares" => share(&mut spec).cache = CachePolicy::None,
        "network_mtu" => network(&mut spec).mtu = Some(9000),
        "balloon" => spec.balloon = true,
        "nested_virtualization" => spec.nested_virtualization = true,
        "rosetta" => spec.rosetta = true,
        "confined" => spec.isolation = Isolation::Required,
        "in_process" => spec.isolation = Isolation::InProcess,
        "preferred_console" | "power_button" | "pause" | "panic_device" | "triple_fault"
        | "disk_resize" => return None,
        other => panic!("no specification is known here that needs the capability {other}"),
    }
    Some(spec)
}

/// Every capability by name, and whether the backend has it.
fn each_capability(can: &BackendCapabilities) -> Vec<(String, bool)> {
    let serde_json::Value::Object(fields) = serde_json::to_value(can).unwrap() else {
        panic!("not an object");
    };
    let mut all = Vec::new();
    for (name, value) in fields {
        match value {
            serde_json::Value::Object(parts) => {
                for (part, value) in parts {
                    all.push((format!("{name}.{part}"), value == true));
                }
            }
            serde_json::Value::Bool(has) => all.push((name, has)),
            // Not a question of yes or no, and asked for in what both can.
            _ => all.push((name, true)),
        }
    }
    all
}

#[test]
fn capabilities_are_what_the_plans_take() {
    for backend in BACKENDS {
        for (name, has) in each_capability(&capabilities(backend)) {
            let Some(spec) = needs(&name) else { continue };
            let planned = plan(&spec, backend);
            assert_eq!(planned.is_ok(), has, "{backend}: {name}: {planned:?}");
        }
    }
}

proptest! {
    /// Settings do not hide one another: a plan is made when and only when every one that was changed
    /// can be honoured, and the capabilities alone never refuse what the plan takes.
    #[test]
    fn any_settings_together_are_refused_when_one_of_them_is(
        chosen in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let table = settings();
        let mut taken = BTreeSet::new();
        let mut changes = Vec::new();
        for index in chosen {
            let setting = &table[index.index(table.len())];
            // What replaces or removes something whole undoes the changes to its parts.
            let (owner, field) = setting.name.split_once('.').unwrap();
            let whole = matches!(field, "boot" | "console" | "disks" | "shares" | "network" | "vsock")
                || ["UefiBoot", "LinuxBoot", "ConsoleSpec"].contains(&owner)
                || setting.name == "DiskSpec.path"
                || field == "filter" || owner == "ShareFilter" || owner == "DiskLimits";
            if !whole && taken.insert(setting.name) {
                changes.push(setting);
            }
        }
        let mut spec = plain();
        for setting in &changes {
            (setting.change)(&mut spec);
        }
        for backend in BACKENDS {
            let refused = changes.iter().any(|s| matches!(s.fate(backend), Refused(_)));
            let planned = plan(&spec, backend);
            prop_assert_eq!(planned.is_err(), refused, "{}: {:?}", backend, planned);
            if capabilities(backend).check(backend, &spec).is_err() {
                prop_assert!(planned.is_err());
            }
        }
    }
}
