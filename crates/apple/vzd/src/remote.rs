//! The library's side: an engine that starts a daemon for each VM.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use capsa_apple_plan::{EngineFailure, FailureKind, HostLimits, VzPlan};
use capsa_apple_vz::{
    EVENT_BACKLOG, Engine, EngineBackend, EnginePorts, Machine, MachineEvent, StartedMachine,
    VSOCK_BACKLOG,
};
use capsa_apple_vzd_ipc::{
    Command, IpcError, IpcReceiver, IpcSender, Request, Start, ToDaemon, ToLibrary, connect,
};
use capsa_core::{BackendKind, MonitorFailure};
use capsa_process::{ChildEnd, Killer, Supervised};
use tokio::sync::{OnceCell, mpsc, oneshot};

use crate::find::find;
use crate::process::Daemon;

/// The `macos-subprocess` backend. The daemon is at `program`, or else the one that `CAPSA_VZD`
/// names, that lies beside the running executable, or that `PATH` has.
pub fn subprocess_backend(program: Option<PathBuf>) -> EngineBackend<RemoteEngine> {
    EngineBackend::new(BackendKind::MacosSubprocess, RemoteEngine::new(program))
}

/// Starts a daemon for each VM.
#[derive(Debug)]
pub struct RemoteEngine {
    program: Option<PathBuf>,
    /// What the host offers does not change while this runs; failures are asked for again.
    host: OnceCell<HostLimits>,
}

impl RemoteEngine {
    /// With the daemon at `program`, or the one that is found.
    pub fn new(program: Option<PathBuf>) -> Self {
        Self {
            program,
            host: OnceCell::new(),
        }
    }

    async fn connect(&self) -> Result<Connection, EngineFailure> {
        let program = find(self.program.as_deref()).ok_or_else(|| {
            let place = match &self.program {
                Some(path) => format!("there is no capsa-vzd at {}", path.display()),
                None => "capsa-vzd is neither beside the executable nor in PATH".to_owned(),
            };
            EngineFailure::new(
                FailureKind::Unavailable,
                place,
                "install capsa-vzd beside the program, or name it in CAPSA_VZD",
            )
        })?;
        let Daemon { process, socket } = Daemon::start(&program)?;
        match connect(socket).await {
            Ok((sender, receiver)) => Ok(Connection {
                process,
                sender,
                receiver,
            }),
            Err(error) => Err(lost(&process, &error).await),
        }
    }

    async fn ask_host(&self) -> Result<HostLimits, EngineFailure> {
        let mut connection = self.connect().await?;
        match connection.ask(&ToDaemon::Probe, &[]).await? {
            ToLibrary::Host(host) => host,
            other => Err(surprise(&other)),
        }
    }
}

struct Connection {
    process: Supervised,
    sender: IpcSender<ToDaemon>,
    receiver: IpcReceiver<ToLibrary>,
}

impl Connection {
    /// Sends one message and receives one.
    async fn ask(
        &mut self,
        message: &ToDaemon,
        descriptors: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<ToLibrary, EngineFailure> {
        // A daemon that has gone may have answered before.
        let sent = self.sender.send(message, descriptors).await;
        match self.receiver.receive().await {
            Ok(Some((answer, _))) => Ok(answer),
            Ok(None) => {
                let error = sent.err().unwrap_or(IpcError::Truncated);
                Err(lost(&self.process, &error).await)
            }
            Err(error) => Err(lost(&self.process, &error).await),
        }
    }
}

/// Why the conversation with a daemon broke off, with its last words. Ends the daemon.
async fn lost(process: &Supervised, error: &IpcError) -> EngineFailure {
    if let IpcError::Hello(error) = error {
        let fix = "install both from the same version of capsa";
        return EngineFailure::new(FailureKind::Unavailable, error.to_string(), fix);
    }
    process.kill();
    let end = process.ended().await;
    let words = end.last_words.trim();
    let words = if words.is_empty() { "none" } else { words };
    EngineFailure::new(
        FailureKind::Framework,
        format!(
            "capsa-vzd ended early ({}): {error}; its last words: {words}",
            end.reason
        ),
        "see its last words for the cause",
    )
}

fn surprise(answer: &ToLibrary) -> EngineFailure {
    EngineFailure::new(
        FailureKind::Protocol,
        format!("capsa-vzd gave an answer that was not asked for: {answer:?}"),
        "install capsa-vzd and the library from the same version of capsa",
    )
}

#[async_trait]
impl Engine for RemoteEngine {
    async fn host(&self) -> Result<HostLimits, EngineFailure> {
        self.host.get_or_try_init(|| self.ask_host()).await.cloned()
    }

    async fn start(
        &self,
        plan: VzPlan,
        ports: EnginePorts,
        restore: Option<PathBuf>,
    ) -> Result<StartedMachine, EngineFailure> {
        let mut connection = self.connect().await?;
        let EnginePorts { console, network } = ports;
        let descriptors: Vec<OwnedFd> = console.into_iter().chain(network).collect();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let start = ToDaemon::Start(Start { plan, restore });
        let answer = connection.ask(&start, &borrowed).await?;
        drop(borrowed);
        // The daemon has its own now; the console ends when those are closed.
        drop(descriptors);
        match answer {
            ToLibrary::Running => Ok(connection.into_machine()),
            ToLibrary::Failed(failure) => Err(failure),
            other => Err(surprise(&other)),
        }
    }
}

impl Connection {
    fn into_machine(self) -> StartedMachine {
        let Self {
            process,
            sender,
            receiver,
        } = self;
        let (events, received) = mpsc::channel(EVENT_BACKLOG);
        let waiting = Arc::new(Waiting::default());
        // Whoever asks may be cancelled, a message that was begun may not.
        let (outgoing, mut queue) = mpsc::unbounded_channel::<ToDaemon>();
        tokio::spawn(async move {
            while let Some(message) = queue.recv().await {
                // The receiving side notices a daemon that is gone, and ends everything.
                if sender.send(&message, &[]).await.is_err() {
                    return;
                }
            }
        });
        let machine = RemoteMachine {
            outgoing,
            waiting: waiting.clone(),
            next: AtomicU32::new(0),
            killer: process.killer(),
        };
        let process_id = Some(process.id());
        tokio::spawn(follow(process, receiver, waiting, events));
        StartedMachine {
            machine: Arc::new(machine),
            events: received,
            process_id,
        }
    }
}

type Answer = Result<Option<OwnedFd>, EngineFailure>;

/// What waits for the daemon's messages.
#[derive(Debug, Default)]
struct Waiting {
    requests: Mutex<HashMap<u32, oneshot::Sender<Answer>>>,
    listeners: Mutex<HashMap<u32, mpsc::Sender<OwnedFd>>>,
}

impl Waiting {
    fn requests(&self) -> std::sync::MutexGuard<'_, HashMap<u32, oneshot::Sender<Answer>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, HashMap<u32, mpsc::Sender<OwnedFd>>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the daemon's messages until it has ended.
async fn follow(
    process: Supervised,
    mut receiver: IpcReceiver<ToLibrary>,
    waiting: Arc<Waiting>,
    events: mpsc::Sender<MachineEvent>,
) {
    let mut last = None;
    let broken = loop {
        match receiver.receive().await {
            Ok(Some((ToLibrary::Done { number, error }, descriptors))) => {
                if let Some(waiter) = waiting.requests().remove(&number) {
                    let answer = match error {
                        Some(failure) => Err(failure),
                        None => Ok(descriptors.into_iter().next()),
                    };
                    // Whoever asked may have lost patience.
                    let _unheard = waiter.send(answer);
                }
            }
            Ok(Some((ToLibrary::VsockAccepted { port }, descriptors))) => {
                let listeners = waiting.listeners();
                if let (Some(listener), Some(stream)) =
                    (listeners.get(&port), descriptors.into_iter().next())
                {
                    // Beyond the backlog, a connection is closed.
                    let _full = listener.try_send(stream);
                }
            }
            Ok(Some((ToLibrary::NetworkLost(reason), _))) => {
                // A reader that is gone is not told.
                let _gone = events.send(MachineEvent::NetworkLost(reason)).await;
            }
            Ok(Some((ToLibrary::Ended(end), _))) => last = Some(MachineEvent::Ended(end)),
            Ok(Some((other, _))) => break Some(surprise(&other).to_string()),
            Ok(None) => break None,
            Err(error) => break Some(error.to_string()),
        }
    };
    waiting.requests().clear();
    waiting.listeners().clear();
    if broken.is_some() {
        process.kill();
    }
    let ChildEnd { reason, last_words } = process.ended().await;
    let event = last.unwrap_or_else(|| {
        let reason = match broken {
            Some(broken) => format!("capsa-vzd was ended: {broken}"),
            None => format!("capsa-vzd {reason}"),
        };
        MachineEvent::Crashed(MonitorFailure { reason, last_words })
    });
    let _gone = events.send(event).await;
}

/// A VM in a daemon. Dropping it ends the daemon.
struct RemoteMachine {
    outgoing: mpsc::UnboundedSender<ToDaemon>,
    waiting: Arc<Waiting>,
    next: AtomicU32,
    killer: Killer,
}

impl RemoteMachine {
    async fn ask(&self, command: Command) -> Answer {
        let (waiter, answer) = oneshot::channel();
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.waiting.requests().insert(number, waiter);
        let forget = Forget(&self.waiting, number);
        let gone = || {
            EngineFailure::new(
                FailureKind::Framework,
                "capsa-vzd ended before it answered",
                "see how the virtual machine ended",
            )
        };
        let request = ToDaemon::Request(Request { number, command });
        self.outgoing.send(request).map_err(|_| gone())?;
        let answer = answer.await;
        drop(forget);
        answer.unwrap_or_else(|_| Err(gone()))
    }
}

/// Takes a request back whose answer nobody waits for any longer.
struct Forget<'a>(&'a Waiting, u32);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.requests().remove(&self.1);
    }
}

impl Drop for RemoteMachine {
    fn drop(&mut self) {
        self.killer.kill();
    }
}

#[async_trait]
impl Machine for RemoteMachine {
    async fn power_button(&self) -> Result<(), EngineFailure> {
        self.ask(Command::PowerButton).await.map(drop)
    }

    async fn kill(&self) -> Result<(), EngineFailure> {
        // The process is the VM: nothing needs its cooperation.
        self.killer.kill();
        Ok(())
    }

    async fn pause(&self) -> Result<(), EngineFailure> {
        self.ask(Command::Pause).await.map(drop)
    }

    async fn resume(&self) -> Result<(), EngineFailure> {
        self.ask(Command::Resume).await.map(drop)
    }

    async fn save_state(&self, file: &Path) -> Result<(), EngineFailure> {
        self.ask(Command::SaveState(file.to_owned()))
            .await
            .map(drop)
    }

    async fn vsock_connect(&self, port: u32) -> Result<OwnedFd, EngineFailure> {
        let stream = self.ask(Command::VsockConnect(port)).await?;
        stream.ok_or_else(|| {
            EngineFailure::new(
                FailureKind::Protocol,
                "capsa-vzd answered without the stream",
                "install capsa-vzd and the library from the same version of capsa",
            )
        })
    }

    async fn vsock_listen(&self, port: u32) -> Result<mpsc::Receiver<OwnedFd>, EngineFailure> {
        let (sender, incoming) = mpsc::channel(VSOCK_BACKLOG);
        // A connection may come before the answer does.
        {
            let mut listeners = self.waiting.listeners();
            if listeners.contains_key(&port) {
                return Err(EngineFailure::new(
                    FailureKind::State,
                    format!("somebody listens on vsock port {port}"),
                    "listen on another port",
                ));
            }
            listeners.insert(port, sender);
        }
        if let Err(failure) = self.ask(Command::VsockListen(port)).await {
            self.waiting.listeners().remove(&port);
            return Err(failure);
        }
        Ok(incoming)
    }

    fn vsock_unlisten(&self, port: u32) {
        self.waiting.listeners().remove(&port);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let command = Command::VsockUnlisten(port);
        // A daemon that is gone listens no longer.
        let _gone = (self.outgoing).send(ToDaemon::Request(Request { number, command }));
    }

    async fn set_balloon(&self, bytes: u64) -> Result<(), EngineFailure> {
        self.ask(Command::SetBalloon(bytes)).await.map(drop)
    }
}
