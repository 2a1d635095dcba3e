//! Sandboxes that outlive the process that made them, and can be found by others.
//!
//! Each has a keeper, see [`keepers`](crate::keepers), which holds the virtual machine. Beside its
//! record there are in its folder
//!
//! | file | content |
//! |---|---|
//! | `output.log`, `output.log.1` | what the sandbox's command wrote; the second is older |
//! | `console.log` | the end of the console, once the sandbox has ended |

pub(crate) mod client;
mod control;
mod keeper;
mod output_log;
pub(crate) mod record;
mod server;

use std::io;
use std::sync::Arc;

use capsa_core::Error;
use tokio::io::AsyncRead;
use tokio::net::UnixStream;

pub use record::{SandboxInfo, SandboxState};

use client::KeeperClient;
use control::{Facts, LetGo, Start};
use record::Registry;

use super::machine::Machine;
use super::{Command, CommandEnd, Result, Sandbox, SandboxBuilder};
use crate::keepers::{self, frames, name};
use crate::network::InterfacePlan;

/// What of a builder is about detached sandboxes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) wanted: bool,
    pub(crate) command: Option<Command>,
    pub(crate) remove_at_end: bool,
}

/// The connection whose end is the sandbox's, until it lets go.
#[derive(Debug)]
pub(crate) struct Hold(UnixStream);

impl SandboxBuilder {
    /// Lets a process of its own look after the sandbox, so that it can be
    /// [detached](Sandbox::detach), and found by its name by [`Sandbox::attach`] of any process of
    /// this user. Without a name it is given one.
    pub fn detachable(mut self) -> Self {
        self.detached.wanted = true;
        self
    }

    /// Starts this command in it, whose output is kept ([`Sandbox::output`]) and whose end is the
    /// sandbox's. It implies [`detachable`](Self::detachable).
    pub fn command(mut self, command: impl super::IntoCommand) -> Self {
        self.detached.command = Some(command.into_command());
        self.detachable()
    }

    /// Keeps nothing of a detached sandbox when it has ended; else it is kept until
    /// [`Sandbox::remove`].
    pub fn remove_at_end(mut self) -> Self {
        self.detached.remove_at_end = true;
        self
    }
}

impl Sandbox {
    /// Lets go of a [detachable](SandboxBuilder::detachable) sandbox: it lives on when this process
    /// ends. One that is [another's](Self::attach) does so anyway.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it is not detachable; it has then ended.
    pub async fn detach(mut self) -> Result<()> {
        match (self.hold.take(), &self.machine) {
            (Some(Hold(mut stream)), _) => {
                frames::send(&mut stream, &LetGo)
                    .await
                    .map_err(|error| Error::io("cannot detach the sandbox", error))?;
                // The keeper's answer: from here on this end may go.
                let _answer: Option<LetGo> = frames::receive(&mut stream)
                    .await
                    .map_err(|error| Error::io("cannot detach the sandbox", error))?;
                Ok(())
            }
            (None, Machine::Kept(_)) => Ok(()),
            (None, Machine::Own(_)) => Err(Error::InvalidState {
                operation: "detach it",
                state: "is this process's own; build it with detachable()".to_owned(),
            }
            .into()),
        }
    }

    /// The running sandbox of this name, whoever of this user has made it. Dropping the result does
    /// not end it.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] where there is none of this name, [`Error::Ended`] where it does not
    /// run any more.
    pub async fn attach(name: &str) -> Result<Self> {
        let info = Self::find(name).await?;
        let keeper = keeper_of(&info)?;
        let facts = keeper.facts().await?;
        Ok(Self::kept(keeper, facts, None))
    }

    /// Every sandbox with a name, of this user, by name: those that run, and those that have ended
    /// and were not removed.
    ///
    /// # Errors
    /// Where the runtime directory cannot be read.
    pub async fn list() -> Result<Vec<SandboxInfo>> {
        in_registry(|registry| registry.list()).await
    }

    /// What is known of the sandbox of this name.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] where there is none.
    pub async fn find(name: &str) -> Result<SandboxInfo> {
        let name = name.to_owned();
        in_registry(move |registry| registry.get(&name)).await
    }

    /// Removes what is kept of a sandbox that has ended or crashed.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it runs, [`Error::InvalidSetting`] where there is none.
    pub async fn remove(name: &str) -> Result<()> {
        let name = name.to_owned();
        in_registry(move |registry| registry.remove(&name)).await
    }

    /// What the command of a detached sandbox has written, both streams as they came; `follow` goes
    /// on until it ends. At least the last 8 MiB are kept.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn output(name: &str, follow: bool) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        let info = Self::find(name).await?;
        if info.state.is_alive() {
            return Ok(Box::new(keeper_of(&info)?.output(follow).await?));
        }
        kept_output(info).await
    }

    /// What a detached sandbox's console shows; as [`output`](Self::output).
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn console_output(
        name: &str,
        follow: bool,
    ) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
        let info = Self::find(name).await?;
        if info.state.is_alive() {
            return Ok(Box::new(keeper_of(&info)?.console(follow).await?));
        }
        let bytes = tokio::task::spawn_blocking(move || {
            std::fs::read(info.directory.join(record::CONSOLE)).unwrap_or_default()
        });
        let bytes = bytes.await.map_err(io::Error::from);
        let bytes = bytes.map_err(|error| Error::io("cannot read the console's end", error))?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }

    /// Waits until a detached sandbox has ended, and says how its command did, where it had one.
    ///
    /// # Errors
    /// As [`find`](Self::find); [`Error::Ended`] where it crashed.
    pub async fn wait_for_command(name: &str) -> Result<(capsa_core::VmExit, Option<CommandEnd>)> {
        let info = Self::find(name).await?;
        match &info.state {
            SandboxState::Ended { exit, command, .. } => Ok((exit.clone(), command.clone())),
            SandboxState::Crashed => Err(crashed(name).into()),
            _ => {
                let ended = keeper_of(&info)?.wait().await?;
                Ok((ended.exit, ended.command))
            }
        }
    }

    /// Waits until the process that looks after a detached sandbox is gone, and has written down all
    /// that it had to.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn wait_until_gone(name: &str) -> Result<()> {
        let name = name.to_owned();
        in_registry(move |registry| registry.wait_for_owner(&name)).await
    }

    fn kept(keeper: KeeperClient, facts: Facts, hold: Option<Hold>) -> Self {
        let machine = Machine::Kept(keeper);
        Self {
            agent: machine.agent(),
            machine,
            backend: facts.backend,
            warnings: facts.warnings(),
            timings: facts.timings,
            config: Arc::new(facts.config),
            network: facts.network,
            time_limit: None,
            hold,
        }
    }
}

/// Starts a keeper and waits until its sandbox takes commands. Dropping the future ends both.
pub(super) async fn create(builder: SandboxBuilder) -> Result<Sandbox> {
    let SandboxBuilder {
        mut config,
        network,
        detached,
    } = builder;
    let network = network.map(InterfacePlan::of).transpose()?;
    let name = config.name.get_or_insert_with(name::random).clone();
    name::check("sandbox", &name)?;
    let start = Start {
        config,
        command: detached.command,
        remove_at_end: detached.remove_at_end,
        network,
    };
    let (facts, conversation) =
        keepers::begin::<_, Box<Facts>>(&keeper::KEEPER, keeper::BEGINNING, &start).await?;
    let socket = Registry::open()?.socket(&name);
    let keeper = KeeperClient::new(name, socket);
    Ok(Sandbox::kept(keeper, *facts, Some(Hold(conversation))))
}

async fn in_registry<T: Send + 'static>(
    work: impl FnOnce(Registry) -> capsa_core::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(|| Registry::open().and_then(work)).await;
    Ok(done.map_err(|error| Error::io("looking for sandboxes", error.into()))??)
}

fn keeper_of(info: &SandboxInfo) -> Result<KeeperClient> {
    match &info.state {
        SandboxState::Ended { exit, .. } => Err(Error::Ended(exit.clone()).into()),
        SandboxState::Crashed => Err(crashed(&info.name).into()),
        _ => Ok(KeeperClient::new(
            info.name.clone(),
            Registry::open()?.socket(&info.name),
        )),
    }
}

fn crashed(name: &str) -> Error {
    Error::Ended(capsa_core::VmExit::MonitorFailure(
        capsa_core::MonitorFailure {
            reason: format!("the process that looked after {name} is gone"),
            last_words: String::new(),
        },
    ))
}

async fn kept_output(info: SandboxInfo) -> Result<Box<dyn AsyncRead + Send + Unpin>> {
    // At most twice the log's bound.
    let bytes = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let mut source = output_log::read_all(&info.directory)?;
        io::Read::read_to_end(&mut source, &mut bytes).map(|_| bytes)
    });
    let bytes = bytes.await.map_err(io::Error::from).and_then(|read| read);
    let bytes = bytes.map_err(|error| Error::io("cannot read the output", error))?;
    Ok(Box::new(io::Cursor::new(bytes)))
}
