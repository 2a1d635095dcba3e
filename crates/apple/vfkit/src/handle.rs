use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use capsa_core::{
    BackendVmHandle, ByteStream, Error, GuestPanic, MonitorFailure, Result, VmExit, VmStatus,
    VsockListener, WindowSize,
};
use capsa_process::console::ConsoleRelay;
use capsa_process::{ChildEnd, ExitReason, Killer, Supervised};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::console::Bridge;
use crate::log::VfkitLog;
use crate::orphan_guard::OrphanGuard;
use crate::rest::{Change, MachineState, RestClient, RestError};
use crate::vsock::VsockPorts;

/// Everything that a running vfkit is made of.
pub(crate) struct MachineParts {
    pub(crate) child: Supervised,
    pub(crate) guard: OrphanGuard,
    pub(crate) log: VfkitLog,
    pub(crate) rest: RestClient,
    pub(crate) vsock: VsockPorts,
    pub(crate) network: Option<OwnedFd>,
    pub(crate) relay: Option<(Bridge, ConsoleRelay)>,
    pub(crate) run_directory: TempDir,
    pub(crate) start_duration: Duration,
}

/// Steers one vfkit. Dropping it kills vfkit.
pub(crate) struct VfkitHandle {
    process_id: u32,
    killer: Killer,
    killed: Arc<AtomicBool>,
    log: VfkitLog,
    rest: RestClient,
    vsock: VsockPorts,
    network: Mutex<Option<OwnedFd>>,
    status: Arc<watch::Sender<VmStatus>>,
    start_duration: Duration,
}

impl VfkitHandle {
    /// Takes over a vfkit whose guest runs. Must be called in a runtime.
    pub(crate) fn new(parts: MachineParts) -> Self {
        let (status, _) = watch::channel(VmStatus::Running);
        let status = Arc::new(status);
        let killed = Arc::new(AtomicBool::new(false));
        let handle = Self {
            process_id: parts.child.id(),
            killer: parts.child.killer(),
            killed: killed.clone(),
            log: parts.log.clone(),
            rest: parts.rest,
            vsock: parts.vsock,
            network: Mutex::new(parts.network),
            status: status.clone(),
            start_duration: parts.start_duration,
        };
        let end = End {
            child: parts.child,
            guard: parts.guard,
            log: parts.log,
            relay: parts.relay,
            run_directory: parts.run_directory,
            killed,
        };
        tokio::spawn(async move {
            let exit = end.wait().await;
            status.send_replace(VmStatus::Exited(exit));
        });
        handle
    }

    /// Fails with the VM's end where it has ended.
    fn alive(&self) -> Result<()> {
        match self.status.borrow().exit() {
            Some(exit) => Err(Error::Ended(exit.clone())),
            None => Ok(()),
        }
    }

    /// Makes a change and checks that it was made.
    async fn change(&self, change: Change, verb: &str) -> Result<()> {
        self.alive()?;
        let changed = self.rest.change(change).await;
        changed.map_err(|error| self.failed(verb, &error))
    }

    async fn must_be(&self, wanted: MachineState, verb: &str) -> Result<()> {
        let state = self.rest.state().await;
        let state = state.map_err(|error| self.failed(verb, &error))?;
        if state == wanted {
            return Ok(());
        }
        let what = format!("vfkit was told to {verb}, but the virtual machine is {state:?}");
        let source = std::io::Error::other("the state did not change");
        Err(Error::io(self.log.with_end(what), source))
    }

    fn failed(&self, verb: &str, error: &RestError) -> Error {
        if let Err(ended) = self.alive() {
            return ended;
        }
        let source = std::io::Error::other(error.to_string());
        Error::io(self.log.with_end(format!("cannot {verb} by vfkit")), source)
    }

    /// Moves to `next`, unless the VM has ended.
    fn move_to(&self, next: VmStatus) {
        self.status.send_if_modified(|status| {
            let moves = status.exit().is_none() && *status != next;
            if moves {
                *status = next;
            }
            moves
        });
    }

    fn end_it(&self) {
        self.killed.store(true, Ordering::SeqCst);
        self.killer.kill();
    }
}

#[async_trait]
impl BackendVmHandle for VfkitHandle {
    fn status(&self) -> watch::Receiver<VmStatus> {
        self.status.subscribe()
    }

    fn process_id(&self) -> Option<u32> {
        Some(self.process_id)
    }

    async fn power_button(&self) -> Result<()> {
        self.change(Change::Stop, "press the power button").await?;
        self.move_to(VmStatus::Stopping);
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        self.alive()?;
        self.end_it();
        let mut status = self.status.subscribe();
        // The sender lives as long as this handle.
        let _ended = status.wait_for(|status| status.exit().is_some()).await;
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.change(Change::Pause, "pause").await?;
        self.must_be(MachineState::Paused, "pause").await?;
        self.move_to(VmStatus::Paused);
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.change(Change::Resume, "resume").await?;
        self.must_be(MachineState::Running, "resume").await?;
        self.move_to(VmStatus::Running);
        Ok(())
    }

    /// The framework's console device does not carry sizes.
    async fn resize_console(&self, _size: WindowSize) -> Result<bool> {
        Ok(false)
    }

    fn start_duration(&self) -> Duration {
        self.start_duration
    }

    async fn vsock_connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        self.alive()?;
        self.vsock.connect(port).await
    }

    async fn vsock_listen(&self, port: u32) -> Result<Box<dyn VsockListener>> {
        self.alive()?;
        self.vsock.listen(port, self.status.subscribe())
    }

    fn take_network_socket(&self) -> Option<OwnedFd> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.take()
    }
}

impl Drop for VfkitHandle {
    fn drop(&mut self) {
        self.end_it();
    }
}

/// What is held until vfkit has ended.
struct End {
    child: Supervised,
    guard: OrphanGuard,
    log: VfkitLog,
    relay: Option<(Bridge, ConsoleRelay)>,
    run_directory: TempDir,
    killed: Arc<AtomicBool>,
}

impl End {
    /// Waits for the end of vfkit, takes the rest of console and log, and frees everything.
    async fn wait(self) -> VmExit {
        let end = self.child.ended().await;
        self.guard.disarm();
        let panic = match self.relay {
            Some((bridge, relay)) => {
                bridge.finished().await;
                relay.finish().await
            }
            None => None,
        };
        self.log.finished().await;
        let log = self.log.text();
        drop(self.run_directory);
        if self.killed.load(Ordering::SeqCst) {
            return VmExit::Killed;
        }
        match panic {
            Some(panic) => VmExit::GuestPanic(GuestPanic {
                message: Some(panic.message),
            }),
            None => classify(&end, log),
        }
    }
}

/// vfkit ends with status 0 after the guest has powered off.
fn classify(end: &ChildEnd, log: String) -> VmExit {
    match end.reason {
        ExitReason::Status(0) => VmExit::PoweredOff,
        reason => VmExit::MonitorFailure(MonitorFailure {
            reason: format!("vfkit {reason}"),
            last_words: log,
        }),
    }
}
