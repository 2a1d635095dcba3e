//! What a sandbox's keeper is asked, and answers: one request a connection.

use std::time::Duration;

use capsa_core::{BackendKind, VmExit, VmStatus, Warning};
use serde::{Deserialize, Serialize};

use crate::keepers::wire_error::WireError;
use crate::network::{InterfacePlan, VmNetworkFacts};
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::{BootTimings, Command, CommandEnd};

/// What the keeper is started with.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) config: SandboxConfig,
    /// Ends the sandbox when it has ended; its output is logged.
    pub(crate) command: Option<Command>,
    pub(crate) remove_at_end: bool,
    pub(crate) network: Option<InterfacePlan>,
}

/// What whoever talks to a keeper is told first of all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) backend: BackendKind,
    pub(crate) timings: BootTimings,
    pub(crate) warnings: Vec<String>,
    pub(crate) config: SandboxConfig,
    pub(crate) network: Option<VmNetworkFacts>,
}

/// The creator lets go: the sandbox lives on without it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct LetGo;

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// What it is.
    Facts,
    /// Where it is in its life.
    Status,
    /// The connection goes on as one to this vsock port of the guest.
    Connect { port: u32 },
    /// Asks the guest to shut down.
    Stop { grace: Duration },
    /// Ends it.
    Kill,
    /// Holds its CPUs.
    Pause,
    /// Lets them go on.
    Resume,
    /// Answers when it has ended.
    Wait,
    /// The connection goes on with what the command wrote.
    Output { follow: bool },
    /// The connection goes on with what the console shows.
    Console { follow: bool },
    /// The connection goes on as the control socket of the sandbox's network.
    Network,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It was done; where a stream follows, it begins.
    Done,
    Facts(Box<Facts>),
    Status(Status),
    Stopped {
        exit: VmExit,
        killed: bool,
    },
    Ended(Ended),
    Failed(WireError),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) exit: VmExit,
    pub(crate) command: Option<CommandEnd>,
}

/// A [`VmStatus`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Status {
    Starting,
    Running,
    Paused,
    Stopping,
    Exited(VmExit),
}

impl From<VmStatus> for Status {
    fn from(status: VmStatus) -> Self {
        match status {
            VmStatus::Running => Self::Running,
            VmStatus::Paused => Self::Paused,
            VmStatus::Stopping => Self::Stopping,
            VmStatus::Exited(exit) => Self::Exited(exit),
            _ => Self::Starting,
        }
    }
}

impl From<Status> for VmStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::Starting => Self::Starting,
            Status::Running => Self::Running,
            Status::Paused => Self::Paused,
            Status::Stopping => Self::Stopping,
            Status::Exited(exit) => Self::Exited(exit),
        }
    }
}

impl Facts {
    pub(crate) fn warnings(&self) -> Vec<Warning> {
        self.warnings.iter().cloned().map(Warning).collect()
    }
}
