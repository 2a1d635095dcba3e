use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::path::{Component, PathBuf};
use std::str::FromStr;
use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Error, MemorySize, Result};

/// The largest number of virtual CPUs of one VM.
pub const MAX_CPUS: u32 = 64;
/// The smallest memory of a VM.
pub const MIN_MEMORY: MemorySize = MemorySize::mib(32);
/// The largest memory of a VM; a host may have less.
pub const MAX_MEMORY: MemorySize = MemorySize::gib(4096);
/// The longest serial number of a disk, in bytes.
pub const MAX_DISK_SERIAL: usize = 20;
/// The longest tag of a share, in bytes.
pub const MAX_SHARE_TAG: usize = 36;
/// The smallest vsock context identifier of a guest.
pub const MIN_VSOCK_CID: u32 = 3;
/// The vsock ports that belong to Capsa itself, for its agent in the guest.
pub const RESERVED_VSOCK_PORTS: RangeInclusive<u32> = 52_100..=52_199;

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

/// What boots in a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum BootSpec {
    /// A Linux kernel, loaded directly.
    Linux(LinuxBoot),
    /// UEFI firmware, which finds what to boot on the disks.
    Uefi(UefiBoot),
}

/// Direct boot of a Linux kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxBoot {
    /// The kernel file: ELF `vmlinux` or bzImage on x86-64, `Image` on aarch64.
    pub kernel: PathBuf,
    /// The initial file system, if any.
    pub initramfs: Option<PathBuf>,
    /// The finished kernel command line; see [`CommandLine`](crate::CommandLine).
    pub command_line: String,
}

/// Boot by UEFI firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UefiBoot {
    /// The firmware file; `None` for the backend's own.
    pub firmware: Option<PathBuf>,
    /// Where the firmware keeps its variables; made when it is not there. `None` forgets them.
    pub variable_store: Option<PathBuf>,
}

/// The guest's console: a serial port and, where the backend has it, a virtio console. Output of
/// both is one stream; input goes to the one that the kernel command line names last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSpec {
    /// Whether there is a console at all.
    pub enabled: bool,
    /// Which device is given the input.
    pub input: ConsoleInput,
    /// The size of the terminal at start, where it is known.
    pub window_size: Option<WindowSize>,
}

impl Default for ConsoleSpec {
    fn default() -> Self {
        Self {
            enabled: true,
            input: ConsoleInput::Serial,
            window_size: None,
        }
    }
}

/// The console device that is given the host's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleInput {
    /// The first serial port (`ttyS0` on x86).
    #[default]
    Serial,
    /// The virtio console (`hvc0`).
    Virtio,
}

/// The size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The image file or block device on the host.
    pub path: PathBuf,
    /// Its format; `None` to probe its content.
    pub format: Option<DiskFormat>,
    /// What the guest may do to it.
    pub access: DiskAccess,
    /// The serial number that the guest sees; at most 20 bytes of ASCII.
    pub serial: Option<String>,
    /// Whether a backing file that a qcow2 image names may be opened.
    pub allow_backing_file: bool,
    /// How fast the guest may read and write.
    #[serde(default)]
    pub limits: DiskLimits,
}

impl DiskSpec {
    /// A disk that the guest reads and writes, its format found by looking at its content.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            access: DiskAccess::default(),
            serial: None,
            allow_backing_file: false,
            limits: DiskLimits::default(),
        }
    }

    /// Checks what every backend asks for, without looking at the host.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn check(&self) -> Result<()> {
        if let Some(serial) = &self.serial
            && (serial.len() > MAX_DISK_SERIAL || !serial.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(Error::invalid_setting(
                "disk serial",
                serial,
                format!("a serial number is at most {MAX_DISK_SERIAL} visible ASCII characters"),
                "shorten it",
            ));
        }
        let zero = |limit: Option<RateLimit>| {
            limit.is_some_and(|limit| limit.per_second == 0 || limit.burst == 0)
        };
        if zero(self.limits.bytes) || zero(self.limits.operations) {
            return Err(Error::invalid_setting(
                "disk limits",
                0,
                "a rate and a burst are at least 1",
                "leave the limit out for none",
            ));
        }
        Ok(())
    }
}

/// How fast a guest may use a disk; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Bytes read and written.
    pub bytes: Option<RateLimit>,
    /// Requests of any size.
    pub operations: Option<RateLimit>,
}

/// A rate, and how much may be used at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Units a second, at least 1.
    pub per_second: u64,
    /// Units at once after a pause, at least 1. A request larger than this passes too, and is paid
    /// back by a longer wait.
    pub burst: u64,
}

impl RateLimit {
    /// So many units a second, and the same at once after a pause.
    pub const fn per_second(units: u64) -> Self {
        Self {
            per_second: units,
            burst: units,
        }
    }
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DiskFormat {
    /// Sectors as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// What a guest may do to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DiskAccess {
    /// Reads and writes reach the image.
    #[default]
    ReadWrite,
    /// Writes fail in the guest.
    ReadOnly,
    /// Writes go to a layer of their own; the image is never written.
    Overlay {
        /// Where the layer is kept; `None` throws it away with the VM.
        layer: Option<PathBuf>,
    },
}

/// A directory of the host that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSpec {
    /// The directory on the host.
    pub host_path: PathBuf,
    /// Where the guest mounts it.
    pub guest_path: PathBuf,
    /// The virtio-fs tag; `None` for one made from its position (`share0`, `share1`, …).
    pub tag: Option<String>,
    /// What the guest may do.
    pub access: ShareAccess,
    /// Whose files the guest's users make and see.
    pub owners: OwnerMapping,
    /// How long the guest may trust what it has seen.
    pub cache: CachePolicy,
    /// What the guest does not get to see.
    #[serde(default)]
    pub filter: ShareFilter,
}

impl ShareSpec {
    /// A directory that the guest can read.
    pub fn new(host_path: impl Into<PathBuf>, guest_path: impl Into<PathBuf>) -> Self {
        Self {
            host_path: host_path.into(),
            guest_path: guest_path.into(),
            tag: None,
            access: ShareAccess::default(),
            owners: OwnerMapping::default(),
            cache: CachePolicy::default(),
            filter: ShareFilter::default(),
        }
    }
}

impl ShareSpec {
    /// The virtio-fs tag of the share that is number `index` in its VM: the one it names, or
    /// `share0`, `share1`, ….
    pub fn tag_at(&self, index: usize) -> Cow<'_, str> {
        match &self.tag {
            Some(tag) => tag.into(),
            None => format!("share{index}").into(),
        }
    }

    /// Checks what every backend asks for, without looking at the host.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn check(&self, index: usize) -> Result<()> {
        let mut parts = self.guest_path.components();
        let absolute = parts.next() == Some(Component::RootDir);
        let named = parts.clone().next().is_some();
        if !absolute || !named || parts.any(|part| !matches!(part, Component::Normal(_))) {
            return Err(Error::invalid_setting(
                "share",
                self.guest_path.display(),
                "the guest path is not an absolute path below /, without ..",
                "write one such as /mnt/work",
            ));
        }
        let tag = self.tag_at(index);
        if tag.is_empty() || tag.len() > MAX_SHARE_TAG || !tag.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(Error::invalid_setting(
                "share tag",
                tag,
                format!("a tag is 1 to {MAX_SHARE_TAG} visible ASCII characters"),
                "use a short name, or none",
            ));
        }
        Ok(())
    }
}

/// What of a share is not there for the guest. By default nothing is hidden.
///
/// It is the host that hides it: no user of the guest gets at it, root neither. Names may still be
/// listed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareFilter {
    /// Only what every user of the host may read is there: files with the `r` of others, directories
    /// with their `x`; no sockets, pipes and devices.
    pub public_only: bool,
    /// Files and directories of the host that are not there, with all that is below them. Those
    /// that do not exist at the start are passed over.
    pub hidden: Vec<PathBuf>,
}

impl ShareFilter {
    /// Whether anything is hidden.
    pub fn is_on(&self) -> bool {
        self.public_only || !self.hidden.is_empty()
    }
}

/// What a guest may do to a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareAccess {
    /// Nothing in it can be changed.
    #[default]
    ReadOnly,
    /// Everything in it can be changed.
    ReadWrite,
}

/// How owners in a share are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerMapping {
    /// The guest's root is the calling user.
    #[default]
    Mapped,
    /// Every user of the guest is the calling user.
    Squash,
    /// Numbers are the same on both sides; needs privileges on the host.
    Passthrough,
}

/// How long a guest may trust what it has seen of a share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CachePolicy {
    /// Ask each time.
    None,
    /// One second.
    #[default]
    Auto,
    /// For ever: nobody else changes the directory.
    Always,
}

/// The guest's network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The hardware address; `None` for one made from the VM's name or at random.
    pub mac: Option<MacAddress>,
    /// A fixed IPv4 address; `None` for one given by DHCP.
    pub ipv4: Option<Ipv4Addr>,
    /// A fixed IPv6 address; `None` for one made from router advertisements.
    pub ipv6: Option<Ipv6Addr>,
    /// The largest IP packet, which the guest's driver is told, in bytes; `None` for 1500.
    #[serde(default)]
    pub mtu: Option<u16>,
    /// What it leads to.
    #[serde(default)]
    pub mode: NetworkMode,
}

impl NetworkSpec {
    /// The MTU where nothing else is said.
    pub const DEFAULT_MTU: u16 = 1500;

    /// The largest IP packet, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu.unwrap_or(Self::DEFAULT_MTU)
    }
}

/// What a guest's network interface leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NetworkMode {
    /// A network of the guest's own, from which it reaches the outside as its policy lets it, by the
    /// caller's own connections.
    #[default]
    UserNat,
    /// The network of this name, together with other guests.
    Cluster(String),
}

/// What frames look like on the socket of [`take_network_socket`], one frame a message.
///
/// [`take_network_socket`]: crate::BackendVmHandle::take_network_socket
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum NetworkFrames {
    /// An Ethernet frame.
    #[default]
    Ethernet,
    /// A virtio-net header of 12 bytes and an Ethernet frame, with offloads.
    VirtioHeader,
}

/// An Ethernet hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let complete = bytes.iter_mut().all(|byte| {
            parts
                .next()
                .filter(|part| part.len() == 2 && !part.starts_with('+'))
                .is_some_and(|part| {
                    u8::from_str_radix(part, 16)
                        .map(|value| *byte = value)
                        .is_ok()
                })
        });
        if !complete || parts.next().is_some() || bytes[0] & 1 == 1 {
            return Err(Error::invalid_setting(
                "mac",
                text,
                "it is not the hardware address of one interface",
                "write six bytes in hexadecimal with colons between, the first one even, \
                 such as 52:54:00:12:34:56",
            ));
        }
        Ok(Self(bytes))
    }
}

/// The socket device between host and guest (virtio-vsock).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSpec {
    /// The guest's context identifier, 3 to 4,294,967,294; `None` for one that is free.
    pub cid: Option<u32>,
    /// Ports of the host that the guest connects to. What connects to them waits for the listener,
    /// however early it comes. Only the vfkit backend must know all of them before the start; the
    /// others listen on any port at any time.
    #[serde(default)]
    pub listen_ports: Vec<u32>,
    /// Ports of the guest that the host connects to. Only the vfkit backend must know them before
    /// the start; the others connect to any port at any time.
    #[serde(default)]
    pub connect_ports: Vec<u32>,
}

impl VsockSpec {
    /// Checks identifier and ports.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn check(&self) -> Result<()> {
        if let Some(cid) = self.cid
            && !(MIN_VSOCK_CID..u32::MAX).contains(&cid)
        {
            return Err(Error::invalid_setting(
                "vsock",
                format!("context identifier {cid}"),
                "it is reserved",
                format!(
                    "use one from {MIN_VSOCK_CID} to {}, or None for any",
                    u32::MAX - 1
                ),
            ));
        }
        // Capsa's own ports may be named here: a sandbox does. What they lead to is guarded by
        // those who connect and listen.
        let mut ports = self.listen_ports.iter().chain(&self.connect_ports);
        match ports.find(|port| **port == u32::MAX) {
            Some(port) => Self::check_port(*port),
            None => Ok(()),
        }
    }

    /// Checks a port of either side that a program of the user's wants to use.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for one of [`RESERVED_VSOCK_PORTS`], and for 4,294,967,295, which
    /// means "any port".
    pub fn check_port(port: u32) -> Result<()> {
        let reason = match port {
            u32::MAX => "it means \"any port\"",
            port if RESERVED_VSOCK_PORTS.contains(&port) => "it belongs to Capsa's own agent",
            _ => return Ok(()),
        };
        Err(Error::invalid_setting(
            "vsock port",
            port,
            reason,
            "use another one, such as 5000",
        ))
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

    #[test]
    fn mac_addresses_parse_and_show_alike() {
        let mac: MacAddress = "52:54:00:12:34:ff".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:12:34:ff");
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "+2:54:00:12:34:56",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
