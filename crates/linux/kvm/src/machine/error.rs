//! What can go wrong before the first instruction runs.

use std::io;

use thiserror::Error;

/// Bytes shown in the unit a reader thinks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MIB: u64 = 1 << 20;
        let bytes = self.0;
        if bytes < MIB {
            write!(f, "{} KiB", bytes.div_ceil(1024))
        } else {
            write!(f, "{} MiB", bytes.div_ceil(MIB))
        }
    }
}

/// Why a machine could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The configuration cannot be honoured.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Guest memory could not be had from the host.
    #[error("guest memory of {size} cannot be set up ({step}): {source}")]
    Memory {
        /// The guest's memory.
        size: Size,
        /// What was being done.
        step: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The kernel cannot be loaded.
    #[error("kernel: {0}")]
    Kernel(#[from] KernelError),
    /// The initrd cannot be loaded.
    #[error("initrd: {0}")]
    Initrd(#[from] InitrdError),
    /// The command line cannot be handed over.
    #[error("kernel command line: {0}")]
    CommandLine(#[from] CommandLineError),
    /// A table or structure for the guest's boot did not fit its place.
    #[error(
        "the {what} for this many processors and devices take {needed} bytes; there is room for {room}"
    )]
    TableTooLarge {
        /// Which one.
        what: &'static str,
        /// Its length in bytes.
        needed: u64,
        /// The room in bytes.
        room: u64,
    },
    /// A boot structure could not be written to guest memory.
    #[error("the {what} cannot be written to guest memory: {source}")]
    GuestWrite {
        /// Which one.
        what: &'static str,
        /// What the memory said.
        source: vm_memory::GuestMemoryError,
    },
    /// A KVM call failed.
    #[error("KVM cannot {action}: {source}")]
    Kvm {
        /// What was asked of it, as in "cannot …".
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The descriptor is not KVM, or one this monitor cannot use.
    #[error("/dev/kvm is not usable: {reason}")]
    KvmUnusable {
        /// What is missing.
        reason: String,
    },
    /// KVM refused the initial value of a register.
    #[error("KVM refuses to set register {register:#x} of a vCPU to {value:#x}")]
    RegisterRefused {
        /// The model-specific register's index.
        register: u32,
        /// The value.
        value: u64,
    },
    /// A host resource of the monitor itself could not be had.
    #[error("the monitor cannot {action}: {source}")]
    Host {
        /// What it tried.
        action: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// A device could not be set up.
    #[error("the {device} device cannot be set up: {reason}")]
    Device {
        /// Which device.
        device: &'static str,
        /// Why not.
        reason: String,
    },
}

impl MachineError {
    pub(crate) fn kvm(action: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |e| Self::Kvm {
            action,
            source: io::Error::from_raw_os_error(e.errno()),
        }
    }

    pub(crate) fn host<E: Into<io::Error>>(action: &'static str) -> impl Fn(E) -> Self {
        move |e| Self::Host {
            action,
            source: e.into(),
        }
    }
}

/// A setting that no machine can have. The message names the setting and the values it takes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The number of vCPUs.
    #[error("`vcpus` is {got}: a machine has 1 to {max} of them{}", host_limit(*.max))]
    Vcpus {
        /// What was asked for.
        got: u32,
        /// The limit here.
        max: u32,
    },
    /// Too little memory.
    #[error("`memory` is {got}: a machine needs at least {min}", got = Size(*.got), min = Size(*.min))]
    MemoryTooSmall {
        /// Bytes asked for.
        got: u64,
        /// The least, in bytes.
        min: u64,
    },
    /// More memory than the host's address space can hold.
    #[error("`memory` is {got}: this host's processors can give a guest at most {max}", got = Size(*.got), max = Size(*.max))]
    MemoryTooLarge {
        /// Bytes asked for.
        got: u64,
        /// The most, in bytes.
        max: u64,
    },
    /// Memory that is not whole pages.
    #[error("`memory` is {got} bytes: it must be a multiple of 4096")]
    MemoryUnaligned {
        /// Bytes asked for.
        got: u64,
    },
    /// More virtio devices than there are interrupt lines.
    #[error("`devices` lists {got} virtio devices: a machine has interrupt lines for {max}")]
    TooManyDevices {
        /// How many were asked for.
        got: usize,
        /// The limit.
        max: usize,
    },
    /// A descriptor that a setting calls for was not handed over, or one too many was.
    #[error("`{setting}` is set, but its descriptor was {problem}")]
    Descriptor {
        /// The setting.
        setting: &'static str,
        /// "not handed over" or "handed over twice".
        problem: &'static str,
    },
}

fn host_limit(max: u32) -> &'static str {
    if max < super::config::MAX_VCPUS {
        " (a limit of this host's KVM)"
    } else {
        ""
    }
}

/// Why a kernel cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KernelError {
    /// No bytes at all.
    #[error("the file is empty")]
    Empty,
    /// Neither ELF nor bzImage.
    #[error("the file is {found}; an x86-64 ELF vmlinux or a bzImage is needed")]
    Unrecognised {
        /// What it seems to be.
        found: &'static str,
    },
    /// A kernel for another processor.
    #[error("the kernel is for {found}, this machine is x86-64")]
    WrongArchitecture {
        /// The processor it is for.
        found: String,
    },
    /// It ends before what its headers announce.
    #[error("the file is cut off: its {what} ends at byte {needed}, the file at {len}")]
    Truncated {
        /// The part that is cut.
        what: &'static str,
        /// Where that part ends.
        needed: u64,
        /// The file's length in bytes.
        len: u64,
    },
    /// A header that contradicts itself.
    #[error("the file is corrupt: {0}")]
    Corrupt(String),
    /// It does not fit the guest's memory.
    #[error(
        "needs {needs} of memory at its load address, the machine has {has}: raise `memory`",
        needs = Size(*.needs), has = Size(*.has)
    )]
    NeedsMemory {
        /// Bytes of RAM from address 0 that loading and unpacking it takes.
        needs: u64,
        /// Bytes of RAM below the 32-bit gap.
        has: u64,
    },
    /// A bzImage without the 64-bit entry point.
    #[error(
        "this bzImage (boot protocol {major}.{minor:02}) has no 64-bit entry point: \
         a 64-bit kernel of Linux 3.8 or later is needed"
    )]
    No64BitEntry {
        /// Boot protocol, major.
        major: u8,
        /// Boot protocol, minor.
        minor: u8,
    },
    /// The file could not be read.
    #[error("cannot read the file: {0}")]
    Read(#[source] io::Error),
}

/// Why an initrd cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InitrdError {
    /// No bytes at all.
    #[error("the file is empty; leave the initrd out when there is none")]
    Empty,
    /// It does not fit beside the kernel.
    #[error(
        "is {size}, and beside the kernel there is room for {room}: raise `memory`",
        size = Size(*.size), room = Size(*.room)
    )]
    NeedsMemory {
        /// Its length in bytes.
        size: u64,
        /// Bytes free for it.
        room: u64,
    },
    /// The file could not be read.
    #[error("cannot read the file: {0}")]
    Read(#[source] io::Error),
}

/// Why a command line cannot be handed to a kernel.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommandLineError {
    /// Longer than the kernel takes.
    #[error("{len} bytes long, this kernel takes at most {max} (the device list included)")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// A byte that ends or breaks it.
    #[error("byte {position} is a control character; only printable text is allowed")]
    ControlCharacter {
        /// Offset of the byte.
        position: usize,
    },
}
