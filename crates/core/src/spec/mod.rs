//! What a virtual machine is to be: plain data, filled in by builders and checked by backends.

mod boot;
mod console;
mod disk;
mod network;
mod share;
mod vm;
mod vsock;

pub use boot::{BootSpec, LinuxBoot, UefiBoot};
pub use console::{ConsoleInput, ConsoleSpec, WindowSize};
pub use disk::{DiskAccess, DiskFormat, DiskLimits, DiskSpec, MAX_DISK_SERIAL, RateLimit};
pub use network::{MacAddress, NetworkFrames, NetworkMode, NetworkSpec};
pub use share::{CachePolicy, MAX_SHARE_TAG, OwnerMapping, ShareAccess, ShareFilter, ShareSpec};
pub use vm::{Isolation, MAX_CPUS, MAX_MEMORY, MIN_MEMORY, VmSpec};
pub use vsock::{MIN_VSOCK_CID, RESERVED_VSOCK_PORTS, VsockSpec};
