//! A VM that runs: the task that follows it, and the handle that steers it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use capsa_core::{
    BackendVmHandle, ByteStream, ConsoleInput, Error, MemoryReport, Result, VmExit, VmStatus,
    VsockListener, WindowSize,
};
use capsa_process::console::ConsoleRelay;
use capsa_process::{Killer, Supervised, VsockPorts};
use capsa_virtio::vsock::ControlSocket as VsockControl;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::balloon::{self, Execute};
use crate::devices::DeviceProcess;
use crate::ending::Evidence;
use crate::log::LogFacts;
use crate::qmp::{Event, Qmp, QmpError};
use crate::serial::{self, SerialRegisters};

/// What a VM that runs consists of.
pub(crate) struct Parts {
    pub(crate) process: Supervised,
    /// QEMU is killed when this is closed.
    pub(crate) lifeline: OwnedFd,
    pub(crate) qmp: Qmp,
    pub(crate) log: JoinHandle<()>,
    pub(crate) facts: watch::Receiver<LogFacts>,
    pub(crate) relay: Option<(ConsoleRelay, ConsoleInput)>,
    /// Whether firmware boots first, which reads serial input without interrupts.
    pub(crate) firmware: bool,
    /// The devices that QEMU reaches over vhost-user.
    pub(crate) devices: Option<DeviceProcess>,
    /// The caller's end of the socket device.
    pub(crate) vsock: Option<VsockControl>,
    /// The network's end of the interface.
    pub(crate) network: Option<OwnedFd>,
    /// Of a VM that has one.
    pub(crate) balloon: Option<Balloon>,
    pub(crate) start_duration: Duration,
}

/// Follows the VM from now on.
///
/// # Errors
/// The runtime cannot watch the socket device's control socket.
pub(crate) fn start(mut parts: Parts) -> Result<QemuVm> {
    let (status_sender, status) = watch::channel(VmStatus::Running);
    let vsock = parts
        .vsock
        .take()
        .map(|socket| VsockPorts::new(socket, status.clone()))
        .transpose()
        .map_err(|error| Error::io("cannot watch the socket device", error))?;
    let (commands, requests) = mpsc::channel(8);
    let killed = Arc::new(AtomicBool::new(false));
    let handle = QemuVm {
        process_id: parts.process.id(),
        killer: parts.process.killer(),
        killed: killed.clone(),
        status,
        commands,
        start_duration: parts.start_duration,
        vsock,
        network: Mutex::new(parts.network.take()),
        balloon: parts.balloon.take(),
    };
    tokio::spawn(follow(parts, requests, killed, status_sender));
    Ok(handle)
}

/// A command of QMP, and where its outcome goes.
struct Request {
    command: &'static str,
    arguments: Value,
    reply: oneshot::Sender<Result<Value, QmpError>>,
}

/// What of the balloon only this side knows.
#[derive(Debug)]
pub(crate) struct Balloon {
    /// The guest's memory in bytes.
    pub(crate) memory: u64,
    /// What it was asked to give.
    pub(crate) target: AtomicU64,
}

/// Steers a VM that QEMU runs.
#[derive(Debug)]
pub(crate) struct QemuVm {
    process_id: u32,
    killer: Killer,
    killed: Arc<AtomicBool>,
    status: watch::Receiver<VmStatus>,
    commands: mpsc::Sender<Request>,
    start_duration: Duration,
    vsock: Option<VsockPorts>,
    network: Mutex<Option<OwnedFd>>,
    balloon: Option<Balloon>,
}

impl Execute for QemuVm {
    async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            command,
            arguments,
            reply,
        };
        if self.commands.send(request).await.is_ok()
            && let Ok(answer) = answer.await
        {
            match answer {
                Ok(value) => return Ok(value),
                Err(error @ QmpError::Refused { .. }) => {
                    return Err(Error::io("cannot steer QEMU", std::io::Error::other(error)));
                }
                // The connection went with the process.
                Err(_) => {}
            }
        }
        Err(Error::Ended(self.exit().await))
    }
}

impl QemuVm {
    /// Carries out a command without arguments or result.
    async fn order(&self, command: &'static str) -> Result<()> {
        self.execute(command, Value::Null).await.map(drop)
    }

    fn balloon(&self, operation: &'static str) -> Result<&Balloon> {
        self.balloon.as_ref().ok_or_else(|| Error::InvalidState {
            operation,
            state: "was built without a balloon".to_owned(),
        })
    }

    async fn exit(&self) -> VmExit {
        let mut status = self.status.clone();
        let exited = status.wait_for(|status| status.exit().is_some()).await;
        let exit = exited.ok().and_then(|status| status.exit().cloned());
        exit.unwrap_or(VmExit::Killed)
    }

    fn vsock(&self, operation: &'static str) -> Result<&VsockPorts> {
        self.vsock.as_ref().ok_or_else(|| Error::InvalidState {
            operation,
            state: "was built without vsock".to_owned(),
        })
    }

    fn end(&self) {
        self.killed.store(true, Ordering::Release);
        self.killer.kill();
    }
}

#[async_trait]
impl BackendVmHandle for QemuVm {
    fn status(&self) -> watch::Receiver<VmStatus> {
        self.status.clone()
    }

    fn process_id(&self) -> Option<u32> {
        Some(self.process_id)
    }

    async fn power_button(&self) -> Result<()> {
        self.order("system_powerdown").await
    }

    async fn kill(&self) -> Result<()> {
        self.end();
        self.exit().await;
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.order("stop").await
    }

    async fn resume(&self) -> Result<()> {
        self.order("cont").await
    }

    async fn resize_console(&self, _size: WindowSize) -> Result<bool> {
        // QEMU's socket consoles carry no size.
        Ok(false)
    }

    fn start_duration(&self) -> Duration {
        self.start_duration
    }

    async fn vsock_connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        self.vsock("connect to a vsock port")?.connect(port).await
    }

    async fn vsock_listen(&self, port: u32) -> Result<Box<dyn VsockListener>> {
        self.vsock("listen on a vsock port")?.listen(port).await
    }

    async fn set_balloon_target(&self, bytes: u64) -> Result<()> {
        let balloon = self.balloon("set the balloon's target")?;
        balloon::set_target(self, balloon.memory, bytes).await?;
        balloon.target.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn memory_report(&self) -> Result<MemoryReport> {
        let balloon = self.balloon("ask for the guest's memory")?;
        let mut report = balloon::report(self, balloon.memory).await?;
        report.balloon_target = balloon.target.load(Ordering::Relaxed);
        Ok(report)
    }

    fn take_network_socket(&self) -> Option<OwnedFd> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.take()
    }
}

impl Drop for QemuVm {
    fn drop(&mut self) {
        self.end();
    }
}

/// What QMP's events told.
#[derive(Debug, Default)]
struct Told {
    shutdown: Option<String>,
    panic_device: bool,
}

async fn follow(
    parts: Parts,
    mut requests: mpsc::Receiver<Request>,
    killed: Arc<AtomicBool>,
    status: watch::Sender<VmStatus>,
) {
    let Parts {
        process,
        lifeline,
        qmp,
        log,
        facts,
        relay,
        firmware,
        mut devices,
        ..
    } = parts;
    let (relay, gate) = match relay {
        Some((relay, ConsoleInput::Serial)) if firmware => {
            relay.open_input();
            (Some(relay), InputGate::Open)
        }
        Some((relay, ConsoleInput::Serial)) => {
            let gate = InputGate::new(relay.input_waits(), facts.clone());
            (Some(relay), gate)
        }
        Some((relay, _)) => (Some(relay), InputGate::Open),
        None => (None, InputGate::Open),
    };
    let mut vm = Connection {
        qmp,
        told: Told::default(),
        gate,
        relay,
    };
    // The connection ends when QEMU does; then everything that it told has been heard.
    let lost = tokio::select! {
        biased;
        error = vm.serve(&mut requests, &status) => match error {
            QmpError::Closed => None,
            error => Some(error.to_string()),
        },
        reason = device_failure(&mut devices) => Some(reason),
    };
    if let Some(reason) = &lost {
        tracing::debug!(reason, "QEMU cannot go on, so it is ended");
        process.kill();
        // It may have told how the guest ended before.
        while let Ok(event) = vm.qmp.event().await {
            vm.take(event, &status);
        }
    }
    requests.close();
    let Connection { told, relay, .. } = vm;
    let mut end = process.ended().await;
    drop((process, lifeline));
    if let Some(devices) = devices {
        end.last_words.push_str(&devices.finish().await.last_words);
    }
    // Nothing else has the log's other end: it is at its end.
    let _told_all = log.await;
    let triple_fault = facts.borrow().triple_fault;
    let panic_text = match relay {
        Some(relay) => relay.finish().await,
        None => None,
    };
    let evidence = Evidence {
        shutdown: told.shutdown,
        panic_device: told.panic_device,
        panic_text,
        triple_fault,
        killed: killed.load(Ordering::Acquire),
        lost,
        end,
    };
    drop(requests);
    status.send_replace(VmStatus::Exited(evidence.exit()));
}

/// Waits until a device cannot go on; for ever where there is none that could.
async fn device_failure(devices: &mut Option<DeviceProcess>) -> String {
    match devices {
        Some(devices) => devices.failed().await,
        None => std::future::pending().await,
    }
}

struct Connection {
    qmp: Qmp,
    told: Told,
    gate: InputGate,
    relay: Option<ConsoleRelay>,
}

impl Connection {
    /// Carries out requests and takes events until the connection ends, and says why it did.
    async fn serve(
        &mut self,
        requests: &mut mpsc::Receiver<Request>,
        status: &watch::Sender<VmStatus>,
    ) -> QmpError {
        loop {
            tokio::select! {
                event = self.qmp.event() => match event {
                    Ok(event) => self.take(event, status),
                    Err(error) => return error,
                },
                request = requests.recv() => match request {
                    Some(Request { command, arguments, reply }) => {
                        let answer = self.qmp.execute(command, arguments).await;
                        // The event that tells of the new state came before the answer.
                        while let Some(event) = self.qmp.kept_event() {
                            self.take(event, status);
                        }
                        // Nobody waits any more where the caller gave up. A connection that is
                        // lost shows again at the next read.
                        let _unheard = reply.send(answer);
                    }
                    // The handle was dropped, which kills the process.
                    None => loop {
                        match self.qmp.event().await {
                            Ok(event) => self.take(event, status),
                            Err(error) => return error,
                        }
                    },
                },
                () = self.gate.changed() => match self.gate.check(&mut self.qmp).await {
                    Ok(true) => if let Some(relay) = &self.relay {
                        relay.open_input();
                    },
                    Ok(false) => {}
                    Err(error) => return error,
                },
            }
        }
    }

    fn take(&mut self, event: Event, status: &watch::Sender<VmStatus>) {
        match event {
            // QEMU may tell a second reason while it ends; the first is the cause.
            Event::Shutdown(reason) => {
                self.told.shutdown.get_or_insert(reason);
            }
            Event::GuestPanicked => self.told.panic_device = true,
            Event::Stop => {
                status.send_replace(VmStatus::Paused);
            }
            Event::Resume => {
                status.send_replace(VmStatus::Running);
            }
            Event::Other => {}
        }
    }
}

/// Holds serial input back until the guest listens (see [`serial`]).
enum InputGate {
    Open,
    /// Nothing is held back yet.
    Idle {
        waits: watch::Receiver<bool>,
        facts: watch::Receiver<LogFacts>,
    },
    /// Input is held back, and writes to the port are logged.
    Watching {
        facts: watch::Receiver<LogFacts>,
    },
}

impl InputGate {
    fn new(waits: watch::Receiver<bool>, facts: watch::Receiver<LogFacts>) -> Self {
        Self::Idle { waits, facts }
    }

    /// Returns when there is a reason to look at the port.
    async fn changed(&mut self) {
        let waited = match self {
            Self::Open => Err(()),
            Self::Idle { waits, .. } => {
                waits.wait_for(|waits| *waits).await.map(drop).map_err(drop)
            }
            Self::Watching { facts } => facts.changed().await.map_err(drop),
        };
        if waited.is_err() {
            // The console or the log has ended: nothing changes any more.
            std::future::pending::<()>().await;
        }
    }

    /// Looks at the port; true when the input can flow, from now on.
    async fn check(&mut self, qmp: &mut Qmp) -> Result<bool, QmpError> {
        if matches!(self, Self::Idle { .. }) && !listens(qmp).await? {
            // First the log, then a second look: a change in between is in one of them.
            trace(qmp, true).await?;
            if let Self::Idle { facts, .. } = std::mem::replace(self, Self::Open) {
                *self = Self::Watching { facts };
            }
        }
        if !listens(qmp).await? {
            return Ok(false);
        }
        if let Self::Watching { .. } = std::mem::replace(self, Self::Open) {
            trace(qmp, false).await?;
        }
        Ok(true)
    }
}

/// Has writes to the serial port logged, or not.
async fn trace(qmp: &mut Qmp, enable: bool) -> Result<(), QmpError> {
    let arguments = json!({ "name": "serial_write", "enable": enable });
    qmp.execute("trace-event-set-state", arguments).await?;
    Ok(())
}

async fn listens(qmp: &mut Qmp) -> Result<bool, QmpError> {
    let mut values = [0; 3];
    for (value, port) in values.iter_mut().zip(serial::PORTS) {
        let command = json!({ "command-line": format!("i /b {port:#x}") });
        let answer = qmp.execute("human-monitor-command", command).await?;
        let text = answer.as_str().unwrap_or_default();
        *value = port_value(text).ok_or_else(|| QmpError::Malformed(text.to_owned()))?;
    }
    Ok(SerialRegisters::new(values).listens())
}

/// The value in an answer such as `portb[0x03f9] = 0x05`.
fn port_value(answer: &str) -> Option<u8> {
    let (_, value) = answer.rsplit_once("= 0x")?;
    u8::from_str_radix(value.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_value_is_read_from_the_monitors_answer() {
        assert_eq!(port_value("portb[0x03f9] = 0x05\r\n"), Some(5));
        for other in ["", "unknown command: 'i'", "portb[0x03f9] = 0x", "= 0x100"] {
            assert_eq!(port_value(other), None, "{other}");
        }
    }
}
