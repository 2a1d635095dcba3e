//! One virtual machine as a whole.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BootSpec, ConsoleSpec, DiskSpec, NetworkSpec, ShareAccess, ShareSpec, VsockSpec};
use crate::{Error, MemorySize, Result};

/// The largest number of virtual CPUs of one VM.
pub const MAX_CPUS: u32 = 64;
/// The smallest memory of a VM.
pub const MIN_MEMORY: MemorySize = MemorySize::mib(32);
/// The largest memory of a VM; a host may have less.
pub const MAX_MEMORY: MemorySize = MemorySize::gib(4096);

/// Everything that a backend must know to run one virtual machine. Builders fill it in, backends
/// check it against what they can honour and then start it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VmSpec {
    /// A name for people; `None` for an anonymous VM.
    pub name: Option<String>,
    /// Number of virtual CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// Guest memory, [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory: MemorySize,
    /// What boots.
    pub boot: BootSpec,
    /// The console.
    pub console: ConsoleSpec,
    /// Block devices, in the order in which the guest sees them.
    pub disks: Vec<DiskSpec>,
    /// Shared directories.
    pub shares: Vec<ShareSpec>,
    /// The network interface; `None` for a guest without one.
    pub network: Option<NetworkSpec>,
    /// The socket device between host and guest; `None` for a guest without one.
    pub vsock: Option<VsockSpec>,
    /// Whether the guest gets a memory balloon with free-page reporting.
    pub balloon: bool,
    /// Whether the guest may run virtual machines of its own.
    #[serde(default)]
    pub nested_virtualization: bool,
    /// Whether the guest gets Apple's translator for x86-64 Linux programs, as a directory share
    /// tagged `rosetta`.
    #[serde(default)]
    pub rosetta: bool,
    /// How strictly the monitor is confined.
    pub isolation: Isolation,
    /// How long a start may take until the guest's CPUs run; `None` for no limit.
    pub start_timeout: Option<Duration>,
}

impl VmSpec {
    /// A VM with one CPU, 512 MiB, a console and nothing else.
    pub fn new(boot: BootSpec) -> Self {
        Self {
            name: None,
            cpus: 1,
            memory: MemorySize::mib(512),
            boot,
            console: ConsoleSpec::default(),
            disks: Vec::new(),
            shares: Vec::new(),
            network: None,
            vsock: None,
            balloon: false,
            nested_virtualization: false,
            rosetta: false,
            isolation: Isolation::default(),
            start_timeout: None,
        }
    }

    /// Checks what every backend asks for, without looking at the host.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] naming the first setting that no backend could honour.
    pub fn check(&self) -> Result<()> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(Error::invalid_setting(
                "cpus",
                self.cpus,
                format!("a VM has 1 to {MAX_CPUS} CPUs"),
                format!("ask for 1 to {MAX_CPUS}"),
            ));
        }
        if self.memory < MIN_MEMORY || self.memory > MAX_MEMORY {
            return Err(Error::invalid_setting(
                "memory",
                self.memory,
                format!("a VM has {MIN_MEMORY} to {MAX_MEMORY}"),
                format!("ask for at least {MIN_MEMORY} and at most {MAX_MEMORY}"),
            ));
        }
        if !self.memory.as_bytes().is_multiple_of(4096) {
            return Err(Error::invalid_setting(
                "memory",
                self.memory,
                "memory comes in pages of 4 KiB",
                format!(
                    "ask for {}",
                    MemorySize::bytes(self.memory.as_bytes() / 4096 * 4096)
                ),
            ));
        }
        if let Some(vsock) = &self.vsock {
            vsock.check()?;
        }
        self.disks.iter().try_for_each(DiskSpec::check)?;
        for (index, share) in self.shares.iter().enumerate() {
            share.check(index)?;
            let tag = share.tag_at(index);
            let mut before = self.shares[..index].iter().enumerate();
            if before.any(|(at, other)| other.tag_at(at) == tag) {
                return Err(Error::invalid_setting(
                    "share tag",
                    tag,
                    "two shares have this tag",
                    "give each share a tag of its own, or none",
                ));
            }
            if self.shares[..index]
                .iter()
                .any(|other| other.guest_path == share.guest_path)
            {
                return Err(Error::invalid_setting(
                    "share",
                    share.guest_path.display(),
                    "two shares have this guest path",
                    "give each share a guest path of its own",
                ));
            }
            if share.filter.is_on() && share.access != ShareAccess::ReadOnly {
                return Err(Error::invalid_setting(
                    "share",
                    share.host_path.display(),
                    "a share that hides files can only be read",
                    "share it with ShareAccess::ReadOnly",
                ));
            }
        }
        Ok(())
    }
}

/// How strictly the process that runs the guest is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Isolation {
    /// Every layer of confinement that the host has; a missing one is a warning that names it.
    #[default]
    BestEffort,
    /// Every layer, or no start at all.
    Required,
    /// No process of its own: the monitor's threads run in the caller's process, unconfined. For
    /// debugging a monitor only: a guest that takes over its monitor has the caller's authority.
    InProcess,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_DISK_SERIAL, RESERVED_VSOCK_PORTS, RateLimit, UefiBoot};

    fn spec() -> VmSpec {
        VmSpec::new(BootSpec::Uefi(UefiBoot::default()))
    }

    fn refused_setting(spec: &VmSpec) -> String {
        match spec.check() {
            Err(Error::InvalidSetting { setting, .. }) => setting,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_spec_is_valid() {
        assert!(spec().check().is_ok());
    }

    #[test]
    fn cpu_counts_outside_the_range_are_refused() {
        for cpus in [0, MAX_CPUS + 1, u32::MAX] {
            assert_eq!(refused_setting(&VmSpec { cpus, ..spec() }), "cpus");
        }
    }

    #[test]
    fn memory_outside_the_range_or_off_a_page_is_refused() {
        for bytes in [
            0,
            1 << 20,
            (32 << 20) - 4096,
            (64 << 20) + 1,
            1 << 50,
            u64::MAX,
        ] {
            let memory = MemorySize::bytes(bytes);
            assert_eq!(refused_setting(&VmSpec { memory, ..spec() }), "memory");
        }
    }

    #[test]
    fn two_shares_on_one_guest_path_are_refused() {
        let share = ShareSpec::new("/a", "/work");
        assert_eq!(
            refused_setting(&VmSpec {
                shares: vec![share.clone(), share],
                ..spec()
            }),
            "share"
        );
    }

    #[test]
    fn share_paths_and_tags_that_cannot_be_used_are_refused() {
        let tagged = |tag: &str| ShareSpec {
            tag: Some(tag.to_owned()),
            ..ShareSpec::new("/a", format!("/{tag}x"))
        };
        for (shares, setting) in [
            (vec![ShareSpec::new("/a", "work")], "share"),
            (vec![ShareSpec::new("/a", "/")], "share"),
            (vec![ShareSpec::new("/a", "/work/../..")], "share"),
            (vec![tagged("")], "share tag"),
            (vec![tagged("a b")], "share tag"),
            (vec![tagged(&"t".repeat(37))], "share tag"),
            (
                vec![ShareSpec::new("/a", "/b"), tagged("share0")],
                "share tag",
            ),
        ] {
            assert_eq!(refused_setting(&VmSpec { shares, ..spec() }), setting);
        }
    }

    #[test]
    fn disk_serials_and_limits_that_cannot_be_used_are_refused() {
        let mut serial = DiskSpec::new("d");
        serial.serial = Some("x".repeat(MAX_DISK_SERIAL + 1));
        let mut limits = DiskSpec::new("d");
        limits.limits.bytes = Some(RateLimit::per_second(0));
        for (disk, setting) in [(serial, "disk serial"), (limits, "disk limits")] {
            let disks = vec![DiskSpec::new("d"), disk];
            assert_eq!(refused_setting(&VmSpec { disks, ..spec() }), setting);
        }
    }

    #[test]
    fn vsock_identifiers_and_ports_that_are_reserved_are_refused() {
        assert!(VsockSpec::check_port(*RESERVED_VSOCK_PORTS.start()).is_err());
        for vsock in [
            VsockSpec {
                cid: Some(2),
                ..VsockSpec::default()
            },
            VsockSpec {
                cid: Some(u32::MAX),
                ..VsockSpec::default()
            },
            VsockSpec {
                connect_ports: vec![u32::MAX],
                ..VsockSpec::default()
            },
        ] {
            let setting = refused_setting(&VmSpec {
                vsock: Some(vsock),
                ..spec()
            });
            assert!(setting.starts_with("vsock"), "{setting}");
        }
    }
}
