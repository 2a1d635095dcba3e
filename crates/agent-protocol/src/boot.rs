//! The boot message: everything that a guest has to be told once.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{ByteString, Timestamp};

/// How the guest is to be set up. All of it is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// The host name.
    pub host_name: Option<String>,
    /// The time when the message was sent.
    pub time: Option<Timestamp>,
    /// Random bytes for the kernel, which counts them as such; at most 4096.
    pub entropy: ByteString,
    /// Environment variables of every command.
    pub environment: Vec<(ByteString, ByteString)>,
    /// The root file system; without it, the initramfs stays the root.
    pub root: Option<RootConfig>,
    /// What else is mounted, in this order, after the root.
    pub mounts: Vec<MountConfig>,
    /// Network interfaces, beside the loopback interface.
    pub interfaces: Vec<InterfaceConfig>,
    /// Further lines of `/etc/hosts`.
    pub hosts: Vec<HostsLine>,
    /// `/etc/resolv.conf`; without it, the file stays as it is.
    pub resolver: Option<ResolverConfig>,
}

/// The root file system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootConfig {
    /// What it is made of: one, or several that lie upon each other, the uppermost first.
    pub layers: Vec<MountSource>,
    /// Where changes go.
    pub changes: RootChanges,
    /// Paths beneath it that are hidden: an empty directory or file is seen instead. A root user of
    /// the guest can take that off again: it keeps programs from stumbling, not from prying.
    pub masks: Vec<ByteString>,
}

/// Where changes of a root file system go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RootChanges {
    /// There are none: it is read-only.
    Refused,
    /// Into the guest's memory; they end with the machine.
    ThrownAway {
        /// How many bytes at most; without it, half of the guest's memory.
        limit: Option<u64>,
    },
    /// Into the file system itself, of which there must be exactly one.
    Written,
    /// Into another file system, from which they come back with the next start.
    Kept(MountSource),
}

/// What can be mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A shared directory.
    VirtioFs {
        /// Its tag.
        tag: String,
    },
    /// A disk.
    Disk {
        /// Which one.
        disk: DiskName,
        /// Its file system, as in mount(8)'s `-t`.
        file_system: String,
    },
    /// The guest's memory.
    Memory {
        /// How many bytes at most; without it, half of the guest's memory.
        limit: Option<u64>,
    },
    /// A directory or file that is there already.
    Path(ByteString),
}

/// One of the machine's disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskName {
    /// The one in this place, 0 for the first.
    Index(u16),
    /// The one with this serial number.
    Serial(String),
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountConfig {
    /// What is mounted.
    pub source: MountSource,
    /// Where: an absolute path, which is made where it is missing.
    pub target: ByteString,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// The file system's own options, as in mount(8)'s `-o`.
    pub options: String,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceConfig {
    /// Which one; without it, the first that is not the loopback interface.
    pub mac: Option<[u8; 6]>,
    /// Addresses, with their prefix lengths in bits.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The next hops to everywhere else.
    pub gateways: Vec<IpAddr>,
    /// The largest packet in bytes.
    pub mtu: Option<u32>,
    /// Whether it asks a DHCP server, once, for an IPv4 address, next hop and, where the message has
    /// none, name servers.
    pub dhcp: bool,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsLine {
    /// The address.
    pub address: IpAddr,
    /// Its names.
    pub names: Vec<String>,
}

/// Where names are looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverConfig {
    /// The servers.
    pub servers: Vec<IpAddr>,
    /// Domains that are tried behind short names.
    pub search: Vec<String>,
    /// Options of resolv.conf(5).
    pub options: Vec<String>,
}

/// What came of a boot message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootReport {
    /// What the guest can do without and has not got, one sentence each.
    pub warnings: Vec<String>,
    /// Nanoseconds from the start of the guest's kernel to the end of the set-up.
    pub since_kernel_start: u64,
}
