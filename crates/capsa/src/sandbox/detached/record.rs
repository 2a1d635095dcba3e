//! What is written down of a sandbox that others can find.

use std::path::PathBuf;
use std::time::Duration;

use capsa_core::{BackendKind, MemorySize, VmExit};
use serde::{Deserialize, Serialize};

use crate::keepers::now;
use crate::keepers::registry::{self, Record};
use crate::sandbox::CommandEnd;

/// What a command wrote.
pub(crate) const OUTPUT: &str = "output.log";
/// The end of the console.
pub(crate) const CONSOLE: &str = "console.log";
/// The version of the file; a newer one is not understood.
const VERSION: u32 = 1;

/// The sandboxes of this user that have a name.
pub(crate) type Registry = registry::Registry<SandboxInfo>;
/// A sandbox's folder, held by its keeper.
pub(crate) type Claim = registry::Claim<SandboxInfo>;

/// What is known of a sandbox that has a name; see [`Sandbox::list`](crate::Sandbox::list).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SandboxInfo {
    version: u32,
    /// Its name.
    pub name: String,
    /// The process that looks after it.
    pub process: u32,
    /// The process that runs the guest, once there is one.
    pub monitor: Option<u32>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Its root file system, for people.
    pub rootfs: String,
    /// The command that it was started for; empty where there is none.
    pub command: Vec<String>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: MemorySize,
    /// What runs it, once that is known.
    pub backend: Option<BackendKind>,
    /// Whether nothing is kept of it when it has ended.
    pub remove_at_end: bool,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Where its files are.
    #[serde(skip)]
    pub directory: PathBuf,
}

/// Where a sandbox is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SandboxState {
    /// It boots.
    Starting,
    /// It runs.
    Running,
    /// It ended, and is kept until it is removed.
    Ended {
        /// When, in seconds since 1970.
        at: u64,
        /// How the virtual machine ended.
        exit: VmExit,
        /// How the command ended that it was started for, where there was one.
        command: Option<CommandEnd>,
    },
    /// The process that looked after it is gone without a word, and the virtual machine with it.
    Crashed,
}

impl SandboxState {
    /// Whether it has not come to its end.
    pub fn is_alive(&self) -> bool {
        matches!(self, Self::Starting | Self::Running)
    }
}

/// What a new record is made of.
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) rootfs: String,
    pub(crate) command: Vec<String>,
    pub(crate) cpus: u32,
    pub(crate) memory: MemorySize,
    pub(crate) remove_at_end: bool,
}

impl SandboxInfo {
    /// Of a sandbox that begins now, looked after by this process.
    pub(crate) fn new(facts: Facts) -> Self {
        Self {
            version: VERSION,
            name: facts.name,
            process: std::process::id(),
            monitor: None,
            created: now(),
            rootfs: facts.rootfs,
            command: facts.command,
            cpus: facts.cpus,
            memory: facts.memory,
            backend: None,
            remove_at_end: facts.remove_at_end,
            state: SandboxState::Starting,
            directory: PathBuf::new(),
        }
    }

    /// How long ago it was made.
    pub fn age(&self) -> Duration {
        Duration::from_secs(now().saturating_sub(self.created))
    }
}

impl Record for SandboxInfo {
    const KIND: &'static str = "sandbox";
    const FILE: &'static str = "sandbox.json";
    const BELOW: Option<&'static str> = None;
    const COMMANDS: (&'static str, &'static str) = ("capsa ps", "capsa rm");
    const LIVES: &'static str = "stop or kill it first";

    fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(bytes)
            .ok()
            .filter(|info| info.version == VERSION)
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn is_alive(&self) -> bool {
        self.state.is_alive()
    }

    fn is_crashed(&self) -> bool {
        self.state == SandboxState::Crashed
    }

    fn set_crashed(&mut self) {
        self.state = SandboxState::Crashed;
    }

    fn set_directory(&mut self, directory: PathBuf) {
        self.directory = directory;
    }
}
