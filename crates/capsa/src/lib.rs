//! Capsa runs virtual machines behind one API on Linux and macOS.
//!
//! ```no_run
//! use std::time::Duration;
//! use capsa::{Capsa, LinuxBootConfig};
//!
//! # async fn example() -> capsa::Result<()> {
//! let vm = Capsa::vm(LinuxBootConfig::new()).cpus(2).memory_mib(256).start().await?;
//! let mut console = vm.console()?;
//! console.wait_for("# ", Duration::from_secs(60)).await?;
//! console.write_line("nproc; poweroff -f").await?;
//! println!("{}", vm.wait().await);
//! # Ok(())
//! # }
//! ```
//!
//! A *sandbox* is such a machine with a root file system, in which commands are run:
//!
//! ```no_run
//! # async fn example() -> Result<(), capsa::SandboxError> {
//! let sandbox = capsa::Capsa::sandbox().create().await?;
//! let output = sandbox.exec(["uname", "-r"]).await?;
//! println!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
//! # Ok(())
//! # }
//! ```
//!
//! [`Capsa::sandbox`] starts building one. [`Capsa::vm`] gives the builder that belongs to what is booted ([`LinuxVmBuilder`],
//! [`UefiVmBuilder`]). [`build`](LinuxVmBuilder::build) checks everything and starts nothing;
//! [`VmHandle`] starts, stops and watches the VM; [`VmConsole`] reads and writes its console.
//!
//! Everything async needs a tokio runtime with time enabled, of either flavour, and never blocks
//! it. Nothing here exits or aborts the process, any number of VMs may run in it, and dropping a
//! [`VmHandle`] frees all that its VM held.
//!
//! # Backends and features
//! Which backends a build has is decided by features: `linux-kvm` and `qemu` (both by default; of
//! effect on Linux), `vfkit`, `macos-native` and `macos-subprocess` (on macOS). At run time
//! [`BackendChoice`] or the environment variable `CAPSA_BACKEND` chooses one of them. What a
//! backend cannot honour is refused by `build` with [`Error::Unsupported`].

mod boot;
mod builder;
mod choice;
mod console;
mod disks;
#[cfg(test)]
mod fake;
mod guest_mounts;
mod handle;
#[cfg(test)]
mod handle_tests;
#[cfg(target_os = "linux")]
mod keepers;
mod memory;
pub mod network;
mod sandbox;
mod status;
#[cfg(feature = "test-utils")]
pub mod test_utils;
mod vsock;
#[cfg(unix)]
mod vsock_forward;

#[cfg(feature = "macos-native")]
#[doc(hidden)]
pub use apple_main;
/// Runs an `async fn main` beside the main thread, which is left to Apple's frameworks; elsewhere on
/// an ordinary runtime. Capsa itself does not need it: its virtual machines have queues of their own.
#[cfg(feature = "macos-native")]
pub use apple_main::capsa_main as main;

pub use boot::{LinuxBootConfig, LinuxVmBuilder, UefiBootConfig, UefiVmBuilder, VmConfig};
pub use builder::VmBuilder;
pub use choice::BackendChoice;
pub use console::{ConsoleConfig, ConsoleReader, ConsoleWriter, Pattern, ReadFrom, VmConsole};
pub use handle::{StopReport, VmHandle};
#[cfg(target_os = "linux")]
pub use keepers::{DIRECTORY_VARIABLE as RUNTIME_DIRECTORY_VARIABLE, MAX_NAME_BYTES};
#[cfg(feature = "blocking")]
pub use sandbox::blocking;
pub use sandbox::{
    BootTimings, Command, CommandEnd, Forward, IntoCommand, Rootfs, Sandbox, SandboxBuilder,
    SandboxError, host_rootfs_hidden_paths,
};
#[cfg(target_os = "linux")]
pub use sandbox::{SandboxInfo, SandboxState};
pub use status::StatusStream;
pub use vsock::{VsockListener, VsockStream};
#[cfg(unix)]
pub use vsock_forward::VsockForward;

pub use capsa_agent_client::{
    AgentClient, AgentError, ByteString, Changes, Child, ChildControl, ChildStderr, ChildStdin,
    ChildStdout, CommandInput, Entry, ExitStatus, ExtractOptions, Failure, FailureKind, FileKind,
    FileReader, FileWriter, Files, Metadata, Output, Terminal, Timestamp, TreeSummary,
    WriteOptions,
};

pub use capsa_core::{
    Availability, BackendCapabilities, BackendKind, BackendReport, BootKinds, BootPhase, BootSpec,
    CachePolicy, CommandLine, CommandLineError, ConsoleKinds, DiskAccess, DiskFormat, DiskLimits,
    DiskSpec, Error, GuestPanic, Isolation, LinuxBoot, MAX_COMMAND_LINE_BYTES, MAX_CPUS,
    MAX_DISK_SERIAL, MAX_MEMORY, MAX_SHARE_TAG, MIN_MEMORY, MIN_VSOCK_CID, MacAddress,
    MemoryReport, MemorySize, MonitorFailure, NetworkErrorKind, NetworkMode, NetworkSpec,
    OwnerMapping, ParseMemorySizeError, RESERVED_VSOCK_PORTS, RateLimit, Result, ShareAccess,
    ShareFilter, ShareSpec, UefiBoot, VmExit, VmSpec, VmStatus, VsockSpec, Warning, WindowSize,
};

/// The guide's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/api.md")]
struct Guide;

/// So does the first page's.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct FirstPage;

/// So do those of the page on devices.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/devices.md")]
struct Devices;

/// Where everything starts.
#[derive(Debug)]
pub struct Capsa;

impl Capsa {
    /// The builder that belongs to the type of `config`.
    pub fn vm<C: VmConfig>(config: C) -> C::Builder {
        config.into_builder()
    }

    /// Starts building a sandbox: a virtual machine in which commands are run.
    pub fn sandbox() -> SandboxBuilder {
        SandboxBuilder::default()
    }

    /// Every backend of this build, whether it can be used here, and what it can honour. Each is
    /// probed once a process.
    pub async fn backends() -> Vec<BackendReport> {
        let mut reports = Vec::new();
        for candidate in choice::candidates() {
            reports.push(candidate.report().await);
        }
        reports
    }
}
