//! Sandboxes: a virtual machine with a root file system, in which commands are run.

#[cfg(feature = "blocking")]
pub mod blocking;
mod builder;
mod config;
#[cfg(target_os = "linux")]
pub(crate) mod detached;
mod error;
mod forward;
mod host_rootfs;
mod machine;
mod rootfs;
mod start;
mod timings;

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use capsa_agent_client::{AgentClient, Child, ExitStatus, Output, Terminal};
use capsa_core::{BackendKind, Error, VmExit, VmStatus, Warning};
use serde::{Deserialize, Serialize};

pub use builder::SandboxBuilder;
pub use capsa_agent_client::Command;
#[cfg(target_os = "linux")]
pub use detached::{SandboxInfo, SandboxState};
pub use error::SandboxError;
pub use forward::Forward;
pub use host_rootfs::host_rootfs_hidden_paths;
pub use rootfs::Rootfs;
pub use timings::BootTimings;

use crate::network::VmNetwork;
use config::SandboxConfig;
use machine::Machine;

/// How long a machine whose agent is gone may take to end. One that does not has lost its agent only.
const ENDING: Duration = Duration::from_secs(2);

/// The result of a sandbox's operations.
type Result<T, E = SandboxError> = std::result::Result<T, E>;

/// A virtual machine in which commands are run.
///
/// ```no_run
/// # async fn example() -> Result<(), capsa::SandboxError> {
/// use capsa::{Capsa, Rootfs};
///
/// let sandbox = Capsa::sandbox().rootfs(Rootfs::Host).cpus(2).create().await?;
/// let output = sandbox.exec(["uname", "-r"]).await?;
/// println!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
/// # Ok(())
/// # }
/// ```
///
/// Every method takes `&self`: any number of tasks may run commands at once. Dropping the sandbox
/// ends it and frees all that it held, unless it was [detached](Self::detach) or is
/// [another process's](Self::attach).
pub struct Sandbox {
    machine: Machine,
    agent: AgentClient,
    config: Arc<SandboxConfig>,
    backend: BackendKind,
    timings: BootTimings,
    warnings: Vec<Warning>,
    time_limit: Option<start::TimeLimit>,
    #[cfg(target_os = "linux")]
    hold: Option<detached::Hold>,
    /// Where it is another process's.
    #[cfg(target_os = "linux")]
    network: Option<crate::network::VmNetworkFacts>,
}

/// How a command ended that a sandbox was started for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CommandEnd {
    /// It ran, and ended.
    Exited(ExitStatus),
    /// It could not be started, or was lost with its machine.
    Failed {
        /// What a shell would report: 125, 126 or 127.
        code: i32,
        /// Why.
        reason: String,
    },
    /// The sandbox's time was over before.
    TimedOut,
}

/// What can be run: a [`Command`], a program's name, or a program with its arguments.
pub trait IntoCommand {
    /// As a command.
    fn into_command(self) -> Command;
}

impl IntoCommand for Command {
    fn into_command(self) -> Command {
        self
    }
}

impl IntoCommand for &str {
    fn into_command(self) -> Command {
        Command::new(self)
    }
}

impl<const N: usize> IntoCommand for [&str; N] {
    fn into_command(self) -> Command {
        self.as_slice().into_command()
    }
}

impl IntoCommand for &[&str] {
    fn into_command(self) -> Command {
        let (program, arguments) = self.split_first().unwrap_or((&"", &[]));
        Command::new(*program).arguments(arguments.iter().copied())
    }
}

impl Sandbox {
    /// Runs a command to its end and gives its status and all that it wrote. Its standard input is
    /// empty, and no shell is in between.
    ///
    /// # Errors
    /// [`SandboxError`]: the command cannot be started, or the sandbox has ended. A command that
    /// fails is no error.
    pub async fn exec(&self, command: impl IntoCommand) -> Result<Output> {
        let command = self.with_defaults(command.into_command());
        self.lost(self.agent.output(command)).await
    }

    /// Runs a script of the sandbox's `/bin/sh`; see [`exec`](Self::exec).
    ///
    /// # Errors
    /// As there.
    pub async fn shell(&self, script: &str) -> Result<Output> {
        self.exec(["/bin/sh", "-c", script]).await
    }

    /// Starts a command whose streams the caller reads and writes while it runs.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub async fn spawn(&self, command: impl IntoCommand) -> Result<Child> {
        let command = self.with_defaults(command.into_command());
        self.lost(self.agent.spawn(command)).await
    }

    /// Starts a command on a terminal of this size.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub async fn pty(&self, command: impl IntoCommand, size: Terminal) -> Result<Child> {
        self.spawn(command.into_command().terminal(size)).await
    }

    /// The sandbox's files.
    pub fn files(&self) -> capsa_agent_client::Files {
        self.agent.files()
    }

    /// The agent, for what has no method here.
    pub fn agent(&self) -> &AgentClient {
        &self.agent
    }

    /// Listens on an address of the host and connects whoever comes to TCP `guest_port` of the
    /// sandbox's loopback interface. It needs no network in the sandbox, and ends when the result is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Io`] where the address cannot be listened on.
    pub async fn forward(&self, host: SocketAddr, guest_port: u16) -> Result<Forward> {
        Forward::start(self.agent.clone(), host, guest_port).await
    }

    /// Holds every CPU; commands stand still.
    ///
    /// # Errors
    /// Of [`VmHandle::pause`](crate::VmHandle::pause).
    pub async fn pause(&self) -> Result<()> {
        Ok(self.machine.pause().await?)
    }

    /// Lets the CPUs of a paused sandbox go on.
    ///
    /// # Errors
    /// As [`pause`](Self::pause). That the clock could not be set is none.
    pub async fn resume(&self) -> Result<()> {
        self.machine.resume().await?;
        // It stood still with the CPUs.
        if let Err(error) = self.agent.set_clock().await {
            tracing::warn!(%error, "the clock of a resumed sandbox is late");
        }
        Ok(())
    }

    /// Asks it to shut down, and ends it when `grace` is over. On return it has ended.
    ///
    /// # Errors
    /// Of [`VmHandle::stop`](crate::VmHandle::stop).
    pub async fn stop(&self, grace: Duration) -> Result<crate::StopReport> {
        Ok(self.machine.stop(grace).await?)
    }

    /// Ends it at once. On return it has ended.
    ///
    /// # Errors
    /// Whatever keeps the backend from ending it.
    pub async fn kill(&self) -> Result<()> {
        Ok(self.machine.kill().await?)
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// Where it is another process's, which cannot be asked.
    pub async fn wait(&self) -> Result<VmExit> {
        Ok(self.machine.wait().await?)
    }

    /// Where it is in its life.
    pub async fn status(&self) -> VmStatus {
        self.machine.status().await
    }

    /// Whether it was ended because its [time](SandboxBuilder::timeout) was over. Always `false`
    /// where it is another process's.
    pub fn time_is_over(&self) -> bool {
        self.time_limit
            .as_ref()
            .is_some_and(start::TimeLimit::is_over)
    }

    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.config.name.as_deref()
    }

    /// How long each phase of its start took.
    pub fn timings(&self) -> &BootTimings {
        &self.timings
    }

    /// What the user should know although nothing failed.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// What runs it.
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// The virtual machine; `None` where it is another process's.
    pub fn vm(&self) -> Option<&crate::VmHandle> {
        match &self.machine {
            Machine::Own(vm) => Some(vm),
            #[cfg(target_os = "linux")]
            Machine::Kept(_) => None,
        }
    }

    /// Its part of its network, where it has one: addresses, ports, policy, counters. All of it can be
    /// changed while the sandbox runs, also where it is another process's.
    ///
    /// # Errors
    /// [`Error::Ended`] where it is another process's and has ended.
    pub async fn network(&self) -> Result<Option<VmNetwork>> {
        match &self.machine {
            Machine::Own(vm) => Ok(vm.network().cloned()),
            #[cfg(target_os = "linux")]
            Machine::Kept(keeper) => match &self.network {
                Some(facts) => Ok(Some(facts.clone().network(keeper.network().await?)?)),
                None => Ok(None),
            },
        }
    }

    fn own(started: start::Started, config: SandboxConfig) -> Self {
        let start::Started {
            vm,
            timings,
            warnings,
        } = started;
        let backend = vm.backend();
        let left = config
            .timeout
            .map(|limit| limit.saturating_sub(timings.total()));
        let time_limit = left.map(|limit| start::TimeLimit::begin(&vm, limit));
        let machine = Machine::Own(vm);
        Self {
            agent: machine.agent(),
            machine,
            config: Arc::new(config),
            backend,
            timings,
            warnings,
            time_limit,
            #[cfg(target_os = "linux")]
            hold: None,
            #[cfg(target_os = "linux")]
            network: None,
        }
    }

    /// A command with the sandbox's user and directory, where it has none of its own.
    fn with_defaults(&self, command: Command) -> Command {
        let command = match &self.config.user {
            Some(user) => command.default_user(user),
            None => command,
        };
        match &self.config.working_directory {
            Some(directory) => command.default_directory(directory),
            None => command,
        }
    }

    /// Where the agent is gone because its machine is, the machine's end is the error.
    async fn lost<T>(
        &self,
        asked: impl Future<Output = capsa_agent_client::Result<T>>,
    ) -> Result<T> {
        use capsa_agent_client::AgentError;
        match asked.await {
            Ok(value) => Ok(value),
            Err(
                error @ (AgentError::Gone { .. }
                | AgentError::Connect(_)
                | AgentError::Connection { .. }),
            ) => match tokio::time::timeout(ENDING, self.machine.wait()).await {
                Ok(Ok(exit)) => Err(Error::Ended(exit).into()),
                _ => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("name", &self.config.name)
            .field("rootfs", &self.config.rootfs)
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}
