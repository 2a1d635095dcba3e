//! The child process that runs a virtual machine: starting it, following it to its end, and
//! carrying its console. What the KVM and the QEMU backends have in common.
//!
//! - [`Program`] starts a child by `posix_spawn`, which does not copy the caller's page tables: as
//!   quick in a process that maps gigabytes as in a small one.
//! - [`Supervised`] owns a child from then on: its error output is always drained, it is reaped as
//!   soon as it ends, and dropping the handle ends it. No thread per child.
//! - [`console`] carries console bytes between the child and the caller, and watches for panics.
//! - [`BootFiles`] opens and checks what boots, before anything is started.
//! - `ControlSocket` (Linux) carries messages with descriptors.
//! - `role` (Linux): the caller's executable, started again, becomes something else ahead of `main`.
//! - `confine` (Linux) takes away a process's own authority.
//! - `VsockPorts` (Linux) is the caller's side of a guest's socket device.

// UNSAFETY: posix_spawn, the SIGIO owner of a descriptor, the time stamp counter, a signal's handler and
// namespaces have no safe wrapper.
#![allow(unsafe_code)]

mod boot_files;
mod child;
#[cfg(target_os = "linux")]
pub mod confine;
pub mod console;
#[cfg(target_os = "linux")]
mod control_socket;
#[cfg(target_os = "linux")]
mod devices;
mod exit_reason;
mod host_tsc;
mod last_words;
#[cfg(target_os = "linux")]
mod lifeline;
mod program;
mod reaper;
#[cfg(target_os = "linux")]
pub mod role;
mod supervised;
mod sys;
#[cfg(target_os = "linux")]
mod vsock;

pub use boot_files::BootFiles;
#[cfg(target_os = "linux")]
pub use boot_files::check_host_memory;
pub use child::Child;
#[cfg(target_os = "linux")]
pub use control_socket::{
    ControlSocket, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, ReceiveError, SendError, receive, send,
};
#[cfg(target_os = "linux")]
pub use devices::OpenDevices;
pub use exit_reason::ExitReason;
pub use host_tsc::host_tsc_khz;
pub use last_words::{LAST_WORDS_BYTES, LastWords};
#[cfg(target_os = "linux")]
pub use lifeline::Lifeline;
pub use program::{Program, SpawnError};
#[cfg(target_os = "linux")]
pub use role::{Role, RoleFunction, StartRoleError, end_process_on_panic, own_executable};
pub use supervised::{ChildEnd, Killer, Supervised};
#[cfg(target_os = "linux")]
pub use vsock::VsockPorts;
