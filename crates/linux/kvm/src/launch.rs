//! Starting a monitor, to the moment at which its vCPUs run.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use capsa_core::{BootPhase, ConsoleIo, Error, Isolation, Result, VmSpec, Warning};
use capsa_process::console::ConsoleRelay;
use capsa_process::{ControlSocket, Supervised};
use capsa_virtio::vsock::ControlSocket as VsockControl;
use tokio::sync::oneshot;

use crate::monitor::{self, Place};
use crate::plan::Plan;
use crate::protocol::{self, Event, Failure};

/// What the monitor's thread is called, where it is one.
const THREAD_NAME: &str = "capsa-monitor";

/// A monitor whose vCPUs run.
pub(crate) struct Monitor {
    pub(crate) socket: ControlSocket,
    pub(crate) body: Body,
    pub(crate) relay: Option<ConsoleRelay>,
    /// The caller's end of the socket device, until its handle takes it.
    pub(crate) vsock: Option<VsockControl>,
    /// The network's end of the interface, until its handle takes it.
    pub(crate) network: Option<OwnedFd>,
}

/// What carries the monitor.
pub(crate) enum Body {
    /// A process of its own.
    Process(Supervised),
    /// A thread of this process.
    Thread(ThreadBody),
}

/// A monitor on a thread.
pub(crate) struct ThreadBody {
    thread: JoinHandle<()>,
    ended: oneshot::Receiver<String>,
}

/// How a monitor went, without the guest's side of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BodyEnd {
    pub(crate) reason: String,
    pub(crate) last_words: String,
}

impl Body {
    /// Ends it now. The guest's memory and devices go with it.
    pub(crate) fn kill(&self) {
        if let Self::Process(process) = self {
            process.kill();
        }
        // A thread ends when its control socket does, which is the caller's to drop.
    }

    pub(crate) fn process_id(&self) -> Option<u32> {
        match self {
            Self::Process(process) => Some(process.id()),
            Self::Thread(_) => None,
        }
    }

    /// Waits for its end. Everything that it held is free then.
    pub(crate) async fn ended(self) -> BodyEnd {
        match self {
            Self::Process(process) => {
                let end = process.ended().await;
                let reason = format!("its process was {}", end.reason);
                BodyEnd {
                    reason: reason
                        .replace("was exited", "exited")
                        .replace("was ended", "ended"),
                    last_words: end.last_words,
                }
            }
            Self::Thread(ThreadBody { thread, ended }) => {
                let last_words = ended.await.unwrap_or_default();
                // It has said its last word: it is about to end, if it has not.
                let reason = match thread.join() {
                    Ok(()) => "its thread ended",
                    Err(_) => "its thread panicked",
                };
                BodyEnd {
                    reason: reason.to_owned(),
                    last_words,
                }
            }
        }
    }
}

/// Starts a monitor for `spec` and waits until its vCPUs run.
///
/// # Errors
/// Names the phase. Nothing is left behind.
pub(crate) async fn launch(
    spec: &VmSpec,
    executable: PathBuf,
) -> Result<(Monitor, Option<ConsoleIo>, Vec<Warning>)> {
    let in_process = spec.isolation == Isolation::InProcess;
    let wanted = spec.clone();
    let started = tokio::task::spawn_blocking(move || start(&wanted, executable, in_process));
    let (mut monitor, console) = started
        .await
        .map_err(|error| start_error(format!("the task that starts it failed: {error}")))??;
    let mut warnings = Vec::new();
    if in_process {
        warnings.push(Warning(
            "the monitor runs inside this process, unconfined: for debugging only".to_owned(),
        ));
    }
    let mut buffer = Vec::new();
    loop {
        match monitor.next_event(&mut buffer).await? {
            Some(Event::Running) => return Ok((monitor, console, warnings)),
            Some(Event::Warning(text)) => warnings.push(Warning(text)),
            Some(Event::Failed(Failure { reason, fix })) => {
                monitor.body.ended().await;
                return Err(Error::start(BootPhase::Load, reason, fix));
            }
            Some(event) => {
                return Err(start_error(format!(
                    "it sent {event:?} before it was started"
                )));
            }
            None => {
                let end = monitor.body.ended().await;
                let words = end.last_words.trim();
                let said = if words.is_empty() {
                    String::new()
                } else {
                    format!(": {words}")
                };
                return Err(start_error(format!("{}{said}", end.reason)));
            }
        }
    }
}

fn start_error(reason: String) -> Error {
    Error::start(
        BootPhase::Monitor,
        reason,
        "run `capsa doctor` to see what this host can do",
    )
}

impl Monitor {
    /// The next event; `None` when the monitor has closed its end.
    pub(crate) async fn next_event(&mut self, buffer: &mut Vec<u8>) -> Result<Option<Event>> {
        let received = self.socket.receive(buffer).await;
        let descriptors = received.map_err(|error| start_error(error.to_string()))?;
        if descriptors.is_none() {
            return Ok(None);
        }
        protocol::decode(buffer)
            .map(Some)
            .map_err(|error| start_error(error.to_string()))
    }
}

/// Opens the files, hands them over, and starts the monitor. Runs on a thread that may block.
fn start(
    spec: &VmSpec,
    executable: PathBuf,
    in_process: bool,
) -> Result<(Monitor, Option<ConsoleIo>)> {
    let mut plan = Plan::new(spec)?;
    let sockets = |error| Error::io("cannot make the control socket", error);
    let (socket, theirs) = ControlSocket::pair().map_err(sockets)?;
    // The message waits in the socket until the monitor is there: no time is lost, and the monitor
    // knows by it that it is one.
    let message =
        protocol::encode_start(&plan.start).map_err(|error| start_error(error.to_string()))?;
    capsa_process::send(&socket, &message, &plan.descriptors())
        .map_err(|error| start_error(error.to_string()))?;
    let body = if in_process {
        on_a_thread(theirs)?
    } else {
        in_a_process(theirs, &executable)?
    };
    let (relay, console) = match plan.console.take() {
        Some(ports) => {
            let (relay, io) = ConsoleRelay::start(ports, true)
                .map_err(|error| Error::io("cannot watch the console's sockets", error))?;
            (Some(relay), Some(io))
        }
        None => (None, None),
    };
    Ok((
        Monitor {
            socket,
            body,
            relay,
            vsock: plan.vsock,
            network: plan.network,
        },
        console,
    ))
}

fn in_a_process(socket: OwnedFd, executable: &Path) -> Result<Body> {
    let started = monitor::MONITOR.start(executable, socket);
    started.map(Body::Process).map_err(|error| {
        Error::start(
            BootPhase::Monitor,
            error.to_string(),
            "run `capsa doctor` to see what this host can do",
        )
    })
}

fn on_a_thread(socket: OwnedFd) -> Result<Body> {
    let (sender, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name(THREAD_NAME.to_owned())
        .spawn(move || {
            let served = monitor::serve(socket, Place::CallersProcess);
            let last_words = served
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            // Nobody waits where the VM's task went with its runtime.
            let _unheard = sender.send(last_words);
        })
        .map_err(|error| Error::io("cannot start the monitor's thread", error))?;
    Ok(Body::Thread(ThreadBody { thread, ended }))
}
