//! What carries a plan out: Virtualization.framework in this process, the same in a daemon, or the
//! tests' own.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use capsa_apple_plan::{EngineFailure, HostLimits, MachineEnd, VzPlan};
use capsa_core::MonitorFailure;
use tokio::sync::mpsc;

/// How many connections of the guest may wait at one vsock port; the next ones are refused.
pub const VSOCK_BACKLOG: usize = 64;
/// How many events may wait. A VM has a handful in its life.
pub const EVENT_BACKLOG: usize = 16;

/// Starts virtual machines.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// What the host offers.
    ///
    /// # Errors
    /// Why no VM can be run: what is missing, with the fix.
    async fn host(&self) -> Result<HostLimits, EngineFailure>;

    /// Starts a VM, from a saved state where `restore` names one. On return its CPUs run. Dropping
    /// the future ends what was started.
    ///
    /// # Errors
    /// In the framework's words.
    async fn start(
        &self,
        plan: VzPlan,
        ports: EnginePorts,
        restore: Option<PathBuf>,
    ) -> Result<StartedMachine, EngineFailure>;
}

/// The guest's ends of a VM's sockets.
#[derive(Debug, Default)]
pub struct EnginePorts {
    /// A stream socket for a plan with a console.
    pub console: Option<OwnedFd>,
    /// A datagram socket for a plan with a network.
    pub network: Option<OwnedFd>,
}

/// A VM that was just started.
pub struct StartedMachine {
    /// Steers it. Dropping the last one ends the VM.
    pub machine: Arc<dyn Machine>,
    /// What happens to it. [`MachineEvent::Ended`] is the last, and nothing of the VM is left then.
    pub events: mpsc::Receiver<MachineEvent>,
    /// The process that runs it, where it is one of its own.
    pub process_id: Option<u32>,
}

/// Something that happened to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The network was cut off; the guest goes on without it.
    NetworkLost(String),
    /// It ended.
    Ended(MachineEnd),
    /// The process that ran it ended without saying how the VM did.
    Crashed(MonitorFailure),
}

/// Steers one VM.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Presses the power button.
    async fn power_button(&self) -> Result<(), EngineFailure>;

    /// Ends the VM now.
    async fn kill(&self) -> Result<(), EngineFailure>;

    /// Holds every CPU.
    async fn pause(&self) -> Result<(), EngineFailure>;

    /// Lets them go on.
    async fn resume(&self) -> Result<(), EngineFailure>;

    /// Writes the state of a paused VM to `file`.
    async fn save_state(&self, file: &Path) -> Result<(), EngineFailure>;

    /// Connects to a vsock port of the guest.
    async fn vsock_connect(&self, port: u32) -> Result<OwnedFd, EngineFailure>;

    /// Takes the guest's connections to a vsock port of the host, of which
    /// [`VSOCK_BACKLOG`] may wait.
    async fn vsock_listen(&self, port: u32) -> Result<mpsc::Receiver<OwnedFd>, EngineFailure>;

    /// Takes them no longer. Does not wait.
    fn vsock_unlisten(&self, port: u32);

    /// Asks the guest to keep this many bytes of its memory.
    async fn set_balloon(&self, bytes: u64) -> Result<(), EngineFailure>;
}
