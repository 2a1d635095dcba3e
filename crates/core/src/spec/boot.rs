//! What boots in a VM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
