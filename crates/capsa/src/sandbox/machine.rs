//! The virtual machine behind a sandbox: this process's own, or one that a keeper looks after.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use capsa_agent_client::{AGENT_PORT, AgentClient};
use capsa_core::{ByteStream, Error, Result, VmExit, VmStatus};

#[cfg(target_os = "linux")]
use super::detached::client::KeeperClient;
use crate::handle::{StopReport, VmHandle};

#[derive(Clone, Debug)]
pub(crate) enum Machine {
    /// It ends with this process, and with the last handle.
    Own(Arc<VmHandle>),
    /// It is another process's.
    #[cfg(target_os = "linux")]
    Kept(KeeperClient),
}

impl Machine {
    async fn connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        match self {
            Self::Own(vm) => vm.running("connect to it")?.vsock_connect(port).await,
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => keeper.connect(port).await,
        }
    }

    /// A client of the agent in it. Clients do not keep the machine alive.
    pub(crate) fn agent(&self) -> AgentClient {
        let weak = match self {
            Self::Own(vm) => Weak::Own(Arc::downgrade(vm)),
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => Weak::Kept(keeper.clone()),
        };
        AgentClient::new(move || {
            let weak = weak.clone();
            async move {
                let machine = weak.upgrade()?;
                machine
                    .connect(AGENT_PORT)
                    .await
                    .map_err(|error| match error {
                        Error::Io { source, .. } => source,
                        other => io::Error::new(io::ErrorKind::NotConnected, other),
                    })
            }
        })
    }

    pub(crate) async fn status(&self) -> VmStatus {
        match self {
            Self::Own(vm) => vm.status(),
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => match keeper.status().await {
                Ok(status) => status,
                Err(Error::Ended(exit)) => VmStatus::Exited(exit),
                Err(_) => VmStatus::Exited(VmExit::Killed),
            },
        }
    }

    pub(crate) async fn stop(&self, grace: Duration) -> Result<StopReport> {
        let stopped = match self {
            Self::Own(vm) => vm.stop(grace).await,
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => keeper.stop(grace).await,
        };
        match stopped {
            // There was nothing left to stop.
            Err(Error::Ended(exit)) => Ok(StopReport {
                exit,
                killed: false,
            }),
            other => other,
        }
    }

    pub(crate) async fn kill(&self) -> Result<()> {
        let killed = match self {
            Self::Own(vm) => vm.kill().await,
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => keeper.kill().await,
        };
        match killed {
            Err(Error::Ended(_)) => Ok(()),
            other => other,
        }
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        match self {
            Self::Own(vm) => vm.pause().await,
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => keeper.pause().await,
        }
    }

    pub(crate) async fn resume(&self) -> Result<()> {
        match self {
            Self::Own(vm) => vm.resume().await,
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => keeper.resume().await,
        }
    }

    pub(crate) async fn wait(&self) -> Result<VmExit> {
        match self {
            Self::Own(vm) => Ok(vm.wait().await),
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => keeper.wait().await.map(|ended| ended.exit),
        }
    }
}

/// What clients hold of a machine.
#[derive(Clone)]
enum Weak {
    Own(std::sync::Weak<VmHandle>),
    #[cfg(target_os = "linux")]
    Kept(KeeperClient),
}

impl Weak {
    fn upgrade(&self) -> io::Result<Machine> {
        match self {
            Self::Own(vm) => vm.upgrade().map(Machine::Own).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotConnected, "the sandbox was dropped")
            }),
            #[cfg(target_os = "linux")]
            Self::Kept(keeper) => Ok(Machine::Kept(keeper.clone())),
        }
    }
}
