//! Shared types, traits and errors of Capsa.
//!
//! Everything here is plain data or a trait: no input or output, no threads, so that it builds on
//! every target. The `capsa` crate re-exports what users meet; backends implement
//! [`HypervisorBackend`] and [`BackendVmHandle`].

mod backend;
mod capabilities;
mod cmdline;
mod error;
mod exit;
mod memory_report;
mod memory_size;
mod spec;
mod status;

pub use backend::{
    BackendVmHandle, ByteStream, ConsoleIo, HypervisorBackend, LaunchedVm, VsockListener, Warning,
};
pub use capabilities::{
    Availability, BackendCapabilities, BackendKind, BackendReport, BootKinds, ConsoleKinds,
};
pub use cmdline::{CommandLine, CommandLineError, MAX_COMMAND_LINE_BYTES};
pub use error::{BootPhase, Error, NetworkErrorKind, Result};
pub use exit::{GuestPanic, MonitorFailure, VmExit};
pub use memory_report::MemoryReport;
pub use memory_size::{MemorySize, ParseMemorySizeError};
pub use spec::{
    BootSpec, CachePolicy, ConsoleInput, ConsoleSpec, DiskAccess, DiskFormat, DiskLimits, DiskSpec,
    Isolation, LinuxBoot, MAX_CPUS, MAX_DISK_SERIAL, MAX_MEMORY, MAX_SHARE_TAG, MIN_MEMORY,
    MIN_VSOCK_CID, MacAddress, NetworkFrames, NetworkMode, NetworkSpec, OwnerMapping,
    RESERVED_VSOCK_PORTS, RateLimit, ShareAccess, ShareFilter, ShareSpec, UefiBoot, VmSpec,
    VsockSpec, WindowSize,
};
pub use status::VmStatus;
