use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use capsa_apple_plan::{EngineFailure, FailureKind, MachineEnd};
use capsa_core::{
    BackendVmHandle, ByteStream, Error, GuestPanic, MemoryReport, MonitorFailure, Result, VmExit,
    VmStatus, VsockListener, WindowSize,
};
use capsa_process::console::ConsoleRelay;
use tokio::sync::{mpsc, watch};

use crate::engine::{Machine, MachineEvent, StartedMachine};
use crate::vsock::{Listener, stream};

pub(crate) struct MachineParts {
    pub(crate) started: StartedMachine,
    pub(crate) relay: Option<ConsoleRelay>,
    pub(crate) network: Option<OwnedFd>,
    pub(crate) vsock: bool,
    /// Guest memory in bytes, where there is a balloon in it.
    pub(crate) ballooned: Option<u64>,
    pub(crate) start_duration: Duration,
}

/// Steers one VM of an engine. Dropping it ends the VM.
pub(crate) struct EngineVmHandle {
    /// `None` once the VM has ended.
    machine: Arc<Mutex<Option<Arc<dyn Machine>>>>,
    process_id: Option<u32>,
    killed: Arc<AtomicBool>,
    network: Mutex<Option<OwnedFd>>,
    vsock: bool,
    ballooned: Option<u64>,
    status: Arc<watch::Sender<VmStatus>>,
    start_duration: Duration,
}

impl EngineVmHandle {
    /// Takes over a VM that runs. Must be called in a runtime.
    pub(crate) fn new(parts: MachineParts) -> Self {
        let StartedMachine {
            machine,
            events,
            process_id,
        } = parts.started;
        let (status, _) = watch::channel(VmStatus::Running);
        let status = Arc::new(status);
        let machine = Arc::new(Mutex::new(Some(machine)));
        let killed = Arc::new(AtomicBool::new(false));
        tokio::spawn(follow(Follower {
            events,
            relay: parts.relay,
            machine: machine.clone(),
            killed: killed.clone(),
            status: status.clone(),
        }));
        Self {
            machine,
            process_id,
            killed,
            network: Mutex::new(parts.network),
            vsock: parts.vsock,
            ballooned: parts.ballooned,
            status,
            start_duration: parts.start_duration,
        }
    }

    /// The machine, or the VM's end.
    fn machine(&self) -> Result<Arc<dyn Machine>> {
        if let Some(exit) = self.status.borrow().exit() {
            return Err(Error::Ended(exit.clone()));
        }
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.clone().ok_or(Error::Ended(VmExit::Killed))
    }

    fn failed(&self, operation: &'static str, failure: EngineFailure) -> Error {
        if let Some(exit) = self.status.borrow().exit() {
            return Error::Ended(exit.clone());
        }
        match failure.kind {
            FailureKind::State => Error::InvalidState {
                operation,
                state: failure.to_string(),
            },
            _ => Error::io(format!("cannot {operation}"), io::Error::other(failure)),
        }
    }

    fn move_to(&self, next: VmStatus) {
        self.status.send_if_modified(|status| {
            let moves = status.exit().is_none() && *status != next;
            if moves {
                *status = next;
            }
            moves
        });
    }

    fn needs_vsock(&self, operation: &'static str) -> Result<()> {
        if self.vsock {
            return Ok(());
        }
        Err(Error::InvalidState {
            operation,
            state: "has no vsock device".to_owned(),
        })
    }
}

#[async_trait]
impl BackendVmHandle for EngineVmHandle {
    fn status(&self) -> watch::Receiver<VmStatus> {
        self.status.subscribe()
    }

    fn process_id(&self) -> Option<u32> {
        self.process_id
    }

    async fn power_button(&self) -> Result<()> {
        let operation = "press the power button";
        let pressed = self.machine()?.power_button().await;
        pressed.map_err(|failure| self.failed(operation, failure))?;
        self.move_to(VmStatus::Stopping);
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        let machine = self.machine()?;
        self.killed.store(true, Ordering::SeqCst);
        // Where it cannot be ended in order, letting go of it ends it.
        if machine.kill().await.is_err() {
            let mut held = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
            held.take();
        }
        drop(machine);
        let mut status = self.status.subscribe();
        // The sender lives as long as this handle.
        let _ended = status.wait_for(|status| status.exit().is_some()).await;
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        let paused = self.machine()?.pause().await;
        paused.map_err(|failure| self.failed("pause", failure))?;
        self.move_to(VmStatus::Paused);
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        let resumed = self.machine()?.resume().await;
        resumed.map_err(|failure| self.failed("resume", failure))?;
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
        let operation = "connect to a vsock port";
        let machine = self.machine()?;
        self.needs_vsock(operation)?;
        let connected = machine.vsock_connect(port).await;
        stream(connected.map_err(|failure| self.failed(operation, failure))?)
    }

    async fn vsock_listen(&self, port: u32) -> Result<Box<dyn VsockListener>> {
        let operation = "listen on a vsock port";
        let machine = self.machine()?;
        self.needs_vsock(operation)?;
        let incoming = machine.vsock_listen(port).await;
        let incoming = incoming.map_err(|failure| self.failed(operation, failure))?;
        let status = self.status.subscribe();
        Ok(Box::new(Listener::new(port, incoming, &machine, status)))
    }

    async fn set_balloon_target(&self, bytes: u64) -> Result<()> {
        let operation = "set the balloon's target";
        let machine = self.machine()?;
        let memory = self.ballooned.ok_or_else(|| Error::InvalidState {
            operation,
            state: "has no balloon".to_owned(),
        })?;
        // The framework is told what the guest keeps, in whole MiB.
        let given = bytes.min(memory) & !((1 << 20) - 1);
        let set = machine.set_balloon(memory - given).await;
        set.map_err(|failure| self.failed(operation, failure))
    }

    async fn memory_report(&self) -> Result<MemoryReport> {
        Err(Error::InvalidState {
            operation: "ask for the guest's memory",
            state: "runs on Virtualization.framework, which does not tell".to_owned(),
        })
    }

    fn take_network_socket(&self) -> Option<OwnedFd> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.take()
    }

    async fn save_state(&self, file: &Path) -> Result<()> {
        let saved = self.machine()?.save_state(file).await;
        saved.map_err(|failure| self.failed("save the machine's state", failure))
    }
}

impl Drop for EngineVmHandle {
    fn drop(&mut self) {
        self.killed.store(true, Ordering::SeqCst);
        let mut machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.take();
    }
}

/// What goes on until the VM has ended.
struct Follower {
    events: mpsc::Receiver<MachineEvent>,
    relay: Option<ConsoleRelay>,
    machine: Arc<Mutex<Option<Arc<dyn Machine>>>>,
    killed: Arc<AtomicBool>,
    status: Arc<watch::Sender<VmStatus>>,
}

async fn follow(mut follower: Follower) {
    let end = loop {
        match follower.events.recv().await {
            Some(MachineEvent::NetworkLost(reason)) => {
                tracing::warn!(reason, "the virtual machine's network was cut off");
            }
            Some(end) => break Some(end),
            None => break None,
        }
    };
    let panic = match follower.relay {
        Some(relay) => relay.finish().await,
        None => None,
    };
    {
        let mut machine = (follower.machine.lock()).unwrap_or_else(PoisonError::into_inner);
        machine.take();
    }
    let exit = match (end, panic) {
        _ if follower.killed.load(Ordering::SeqCst) => VmExit::Killed,
        (Some(MachineEvent::Crashed(failure)), _) => VmExit::MonitorFailure(failure),
        (_, Some(panic)) => VmExit::GuestPanic(GuestPanic {
            message: Some(panic.message),
        }),
        (Some(MachineEvent::Ended(MachineEnd::PoweredOff)), None) => VmExit::PoweredOff,
        (Some(MachineEvent::Ended(MachineEnd::Killed)), None) => VmExit::Killed,
        (Some(MachineEvent::Ended(MachineEnd::Failed(reason))), None) => {
            VmExit::MonitorFailure(MonitorFailure {
                reason,
                last_words: String::new(),
            })
        }
        (Some(MachineEvent::NetworkLost(_)) | None, None) => {
            VmExit::MonitorFailure(MonitorFailure {
                reason: "the engine ended without saying how the virtual machine did".to_owned(),
                last_words: String::new(),
            })
        }
    };
    follower.status.send_replace(VmStatus::Exited(exit));
}
