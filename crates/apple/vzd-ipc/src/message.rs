use std::path::PathBuf;

use capsa_apple_plan::{EngineFailure, HostLimits, MachineEnd, VzPlan};
use serde::{Deserialize, Serialize};

/// What the library sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDaemon {
    /// Asks what the host offers; answered by [`ToLibrary::Host`].
    Probe,
    /// Starts the VM, once; answered by [`ToLibrary::Running`] or [`ToLibrary::Failed`]. Its
    /// descriptors, in this order: the console's socket where the plan has a console, the network's
    /// where it has a network.
    Start(Start),
    /// Asks something of the running VM; answered by [`ToLibrary::Done`].
    Request(Request),
}

/// What is to be started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The VM.
    pub plan: VzPlan,
    /// A file with a saved state to go on from.
    pub restore: Option<PathBuf>,
}

/// Something that is asked of a running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the library.
    pub number: u32,
    /// What is to be done.
    pub command: Command,
}

/// What a running VM can be asked to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Press the power button.
    PowerButton,
    /// End it now.
    Kill,
    /// Hold every CPU.
    Pause,
    /// Let them go on.
    Resume,
    /// Write the state of a paused VM to this file.
    SaveState(PathBuf),
    /// Connect to a vsock port of the guest. The answer has the stream beside it.
    VsockConnect(u32),
    /// Take the guest's connections to this vsock port of the host. Each comes as
    /// [`ToLibrary::VsockAccepted`].
    VsockListen(u32),
    /// Take them no longer.
    VsockUnlisten(u32),
    /// The guest is to give memory back, or take it again, until it has this many bytes.
    SetBalloon(u64),
}

/// What the daemon sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToLibrary {
    /// What the host offers, or why VMs cannot be run on it.
    Host(Result<HostLimits, EngineFailure>),
    /// The guest's CPUs run.
    Running,
    /// The start failed, and the daemon ends.
    Failed(EngineFailure),
    /// The answer to a request. A [`Command::VsockConnect`] that went well has its stream beside it.
    Done {
        /// The request's number.
        number: u32,
        /// Why it could not be carried out; `None` where it was.
        error: Option<EngineFailure>,
    },
    /// The guest connected to a port of the host. The stream is beside it.
    VsockAccepted {
        /// The port.
        port: u32,
    },
    /// The network was cut off; the guest goes on without it.
    NetworkLost(String),
    /// The VM ended, and the daemon ends too.
    Ended(MachineEnd),
}
