use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{
    BootSpec, CachePolicy, ConsoleInput, ConsoleSpec, DiskAccess, DiskFormat, DiskLimits, DiskSpec,
    Error, Isolation, NetworkSpec, OwnerMapping, Result, ShareAccess, ShareSpec, VmSpec,
};

/// One way of running virtual machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendKind {
    /// Capsa's own monitor on Linux KVM.
    Kvm,
    /// QEMU: software emulation where hardware virtualization cannot be used.
    Qemu,
    /// macOS through the `vfkit` command.
    Vfkit,
    /// macOS, Virtualization.framework in the caller's process.
    MacosNative,
    /// macOS, Virtualization.framework in a daemon of its own.
    MacosSubprocess,
}

impl BackendKind {
    /// Every kind, in the order of preference.
    pub const ALL: [Self; 5] = [
        Self::Kvm,
        Self::MacosSubprocess,
        Self::MacosNative,
        Self::Vfkit,
        Self::Qemu,
    ];

    /// The name that users type, such as `kvm`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Qemu => "qemu",
            Self::Vfkit => "vfkit",
            Self::MacosNative => "macos-native",
            Self::MacosSubprocess => "macos-subprocess",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                Error::invalid_setting(
                    "backend",
                    text,
                    "there is no backend of this name",
                    format!("use auto or one of: {names}"),
                )
            })
    }
}

/// What boots on a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootKinds {
    /// Linux kernels, loaded directly.
    pub linux: bool,
    /// UEFI firmware.
    pub uefi: bool,
}

/// Which console devices a backend has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleKinds {
    /// A serial port.
    pub serial: bool,
    /// A virtio console.
    pub virtio: bool,
}

/// What a backend can honour. A setting beyond it is refused before anything starts, by
/// [`BackendCapabilities::check`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BackendCapabilities {
    /// What boots.
    pub boot: BootKinds,
    /// The largest number of CPUs.
    pub max_cpus: u32,
    /// Console devices.
    pub console: ConsoleKinds,
    /// Which of them serves a kernel best that has drivers for both. It loses nothing of the
    /// output however slowly that is read.
    #[serde(default)]
    pub preferred_console: ConsoleInput,
    /// Whether an orderly shutdown can be asked for (power button).
    pub power_button: bool,
    /// Whether CPUs can be held and let go.
    pub pause: bool,
    /// Whether a guest's panic is told from a reset by a device of its own; without it, by the
    /// console's text.
    pub panic_device: bool,
    /// Whether a triple fault is told from a reset.
    pub triple_fault: bool,
    /// Disk formats; empty for a backend without disks.
    pub disk_formats: Vec<DiskFormat>,
    /// Whether a disk can have a copy-on-write layer.
    pub disk_overlay: bool,
    /// Whether a disk's speed can be limited.
    #[serde(default)]
    pub disk_limits: bool,
    /// Whether a running guest can be told that a disk has another size.
    #[serde(default)]
    pub disk_resize: bool,
    /// Whether directories can be shared.
    pub shares: bool,
    /// Whether a share can be read-only, enforced on the host.
    pub read_only_shares: bool,
    /// Whether parts of a share can be hidden, enforced on the host.
    #[serde(default)]
    pub share_filters: bool,
    /// Whether it can be chosen whose files the guest's users make and see; without it they are the
    /// calling user's for the guest's root.
    #[serde(default)]
    pub share_owners: bool,
    /// Whether the guest can be kept from trusting what it has seen of a share.
    #[serde(default)]
    pub uncached_shares: bool,
    /// Whether the guest can have a network interface.
    pub network: bool,
    /// Whether the guest's network driver can be told an MTU other than 1500.
    #[serde(default)]
    pub network_mtu: bool,
    /// Whether the guest can have a vsock device.
    pub vsock: bool,
    /// Whether the guest can have a memory balloon.
    pub balloon: bool,
    /// Whether the guest may run virtual machines of its own.
    #[serde(default)]
    pub nested_virtualization: bool,
    /// Whether the guest can be given Rosetta.
    #[serde(default)]
    pub rosetta: bool,
    /// Whether the guest runs in a process of its own that is confined.
    pub confined: bool,
    /// Whether the monitor can run inside the caller's process, for debugging.
    pub in_process: bool,
}

impl BackendCapabilities {
    /// Checks that every setting of `spec` can be honoured by backend `kind`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the first setting that cannot.
    pub fn check(&self, kind: BackendKind, spec: &VmSpec) -> Result<()> {
        let refuse = |setting: &str, fix: &str| Err(Error::unsupported(setting, kind, fix));
        // Every field by name, here and below: whoever adds one has to decide about it.
        let VmSpec {
            name: _,
            cpus,
            memory: _,
            boot,
            console,
            disks,
            shares,
            network,
            vsock,
            balloon,
            nested_virtualization,
            rosetta,
            isolation,
            start_timeout: _,
        } = spec;
        match boot {
            BootSpec::Linux(_) if !self.boot.linux => {
                return refuse("direct Linux boot", "boot by UEFI");
            }
            BootSpec::Uefi(_) if !self.boot.uefi => {
                return refuse(
                    "UEFI boot",
                    "boot a Linux kernel directly, with LinuxBootConfig",
                );
            }
            _ => {}
        }
        if *cpus > self.max_cpus {
            let fix = format!("ask for at most {}", self.max_cpus);
            return refuse(&format!("{cpus} CPUs"), &fix);
        }
        if let ConsoleSpec {
            enabled: true,
            input,
            // A hint, of no effect where the backend cannot pass it on.
            window_size: _,
        } = console
        {
            match input {
                ConsoleInput::Serial if !self.console.serial => {
                    return refuse("a serial console", "use the virtio console: console=hvc0");
                }
                ConsoleInput::Virtio if !self.console.virtio => {
                    return refuse("a virtio console", "use the serial console: console=ttyS0");
                }
                _ => {}
            }
        }
        (disks.iter()).try_for_each(|disk| self.check_disk(kind, disk))?;
        (shares.iter()).try_for_each(|share| self.check_share(kind, share))?;
        if let Some(network) = network {
            self.check_network(kind, network)?;
        }
        if vsock.is_some() && !self.vsock {
            return refuse("a vsock device", "start the VM without vsock");
        }
        if *balloon && !self.balloon {
            return refuse("a memory balloon", "start the VM without a balloon");
        }
        if *nested_virtualization && !self.nested_virtualization {
            return refuse("nested virtualization", "start the VM without it");
        }
        if *rosetta && !self.rosetta {
            return refuse(
                "Rosetta",
                "use the macos-subprocess backend on a Mac with an Apple processor",
            );
        }
        match isolation {
            Isolation::Required if !self.confined => refuse(
                "isolation: required",
                "use the kvm backend, or Isolation::BestEffort",
            ),
            Isolation::InProcess if !self.in_process => {
                refuse("isolation: in-process", "use Isolation::BestEffort")
            }
            _ => Ok(()),
        }
    }

    fn check_disk(&self, kind: BackendKind, disk: &DiskSpec) -> Result<()> {
        let refuse = |setting: &str, fix: &str| Err(Error::unsupported(setting, kind, fix));
        let DiskSpec {
            path: _,
            format,
            access,
            serial: _,
            // Of no effect on images that have none.
            allow_backing_file: _,
            limits,
        } = disk;
        if self.disk_formats.is_empty() {
            return refuse("disks", "start the VM without disks");
        }
        if let Some(format) = format
            && !self.disk_formats.contains(format)
        {
            return refuse(
                &format!("disk format {format:?}"),
                "convert the image with qemu-img convert -O raw",
            );
        }
        if matches!(access, DiskAccess::Overlay { .. }) && !self.disk_overlay {
            return refuse(
                "disk overlays",
                "copy the image and use the copy read-write",
            );
        }
        if *limits != DiskLimits::default() && !self.disk_limits {
            return refuse("disk rate limits", "start the VM without them");
        }
        Ok(())
    }

    fn check_share(&self, kind: BackendKind, share: &ShareSpec) -> Result<()> {
        let refuse = |setting: &str, fix: &str| Err(Error::unsupported(setting, kind, fix));
        let ShareSpec {
            host_path: _,
            guest_path: _,
            tag: _,
            access,
            owners,
            cache,
            filter,
        } = share;
        if !self.shares {
            return refuse("directory shares", "start the VM without shares");
        }
        // Before the question of access: what hides files can only be read.
        if filter.is_on() && !self.share_filters {
            return refuse(
                "shares that hide files",
                "share a copy of the directory, with only what the guest may see",
            );
        }
        if *access == ShareAccess::ReadOnly && !self.read_only_shares {
            return refuse(
                "read-only shares",
                "share a copy of the directory read-write",
            );
        }
        if *owners != OwnerMapping::Mapped && !self.share_owners {
            return refuse(
                &format!("share owners: {owners:?}"),
                "use OwnerMapping::Mapped",
            );
        }
        // The other policies let the guest trust what it has seen; a backend may let it trust less.
        if *cache == CachePolicy::None && !self.uncached_shares {
            return refuse("share cache: None", "use CachePolicy::Auto");
        }
        Ok(())
    }

    fn check_network(&self, kind: BackendKind, network: &NetworkSpec) -> Result<()> {
        let NetworkSpec {
            mac: _,
            // What is behind the frames is the same for all backends.
            ipv4: _,
            ipv6: _,
            mtu: _,
            mode: _,
        } = network;
        if !self.network {
            return Err(Error::unsupported(
                "a network interface",
                kind,
                "start the VM without a network",
            ));
        }
        if network.mtu() != NetworkSpec::DEFAULT_MTU && !self.network_mtu {
            return Err(Error::unsupported(
                format!("an MTU of {}", network.mtu()),
                kind,
                format!("use {}, or leave it out", NetworkSpec::DEFAULT_MTU),
            ));
        }
        Ok(())
    }
}

/// Whether a backend can be used on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Availability {
    /// Whether what it needs is there at all.
    pub present: bool,
    /// Whether VMs can be run by it.
    pub usable: bool,
    /// Why not, or what was found; one sentence in words that a user understands.
    pub reason: String,
    /// What to do to make it usable; `None` where nothing is to be done.
    pub fix: Option<String>,
    /// Version of the program or interface behind it.
    pub version: Option<String>,
    /// How fast the speed probe found it, in guest instructions a second.
    pub instructions_per_second: Option<u64>,
}

impl Availability {
    /// Usable, and what was found.
    pub fn usable(reason: impl Into<String>) -> Self {
        Self {
            present: true,
            usable: true,
            reason: reason.into(),
            fix: None,
            version: None,
            instructions_per_second: None,
        }
    }

    /// There, but not usable, with the fix.
    pub fn unusable(reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            usable: false,
            fix: Some(fix.into()),
            ..Self::usable(reason)
        }
    }

    /// Not there, with the fix.
    pub fn absent(reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            present: false,
            ..Self::unusable(reason, fix)
        }
    }
}

/// One backend, as `capsa doctor` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendReport {
    /// Which one.
    pub backend: BackendKind,
    /// Whether it can be used.
    pub availability: Availability,
    /// What it can honour.
    pub capabilities: BackendCapabilities,
}
