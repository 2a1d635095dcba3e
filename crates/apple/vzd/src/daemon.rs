//! The daemon: one VM for the process at the other end of the control socket.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use capsa_apple_plan::{EngineFailure, FailureKind};
use capsa_apple_vz::{Engine, EnginePorts, Machine, MachineEvent, StartedMachine};
use capsa_apple_vzd_ipc::{
    Command, IpcError, IpcReceiver, IpcSender, Request, Start, ToDaemon, ToLibrary, connect,
};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};

/// How many requests may be in the works; the next ones wait in the socket.
const MAX_REQUESTS: usize = 64;

type Sender = Arc<IpcSender<ToLibrary>>;

/// Why the daemon could not serve to the end.
#[derive(Debug)]
pub struct DaemonError(IpcError);

impl std::fmt::Display for DaemonError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "capsa-vzd: {}", self.0)
    }
}

impl std::error::Error for DaemonError {}

impl From<IpcError> for DaemonError {
    fn from(error: IpcError) -> Self {
        Self(error)
    }
}

impl From<io::Error> for DaemonError {
    fn from(error: io::Error) -> Self {
        Self(IpcError::Io(error))
    }
}

/// The daemon's `main`: serves `engine` on its standard input. What goes wrong is written to the
/// error output, which the library keeps the end of.
pub fn run(engine: impl Engine) -> ExitCode {
    let served = (|| {
        let socket = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            socket.set_nonblocking(true)?;
            serve(&engine, UnixStream::from_std(socket)?).await
        })
    })();
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Serves the library at the other end of `socket` until it goes or its VM ends. The VM ends with it.
///
/// # Errors
/// Where the library has another version or sends something that is no message.
pub async fn serve(engine: &impl Engine, socket: UnixStream) -> Result<(), DaemonError> {
    let (sender, mut receiver) = connect(socket).await?;
    let sender = Arc::new(sender);
    let Some(started) = start(engine, &sender, &mut receiver).await? else {
        return Ok(());
    };
    let StartedMachine {
        machine,
        mut events,
        ..
    } = started;
    let (failures, mut failed) = mpsc::channel::<IpcError>(1);
    let server = Server {
        machine,
        sender: sender.clone(),
        failures,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
    };
    loop {
        tokio::select! {
            message = receiver.receive() => match message? {
                None => return Ok(()),
                Some((ToDaemon::Request(request), _)) => server.begin(request).await,
                Some((ToDaemon::Probe, _)) => {
                    sender.send(&ToLibrary::Host(engine.host().await), &[]).await?;
                }
                Some((ToDaemon::Start(_), _)) => {
                    let failure = protocol_failure("this daemon has a virtual machine already");
                    sender.send(&ToLibrary::Failed(failure), &[]).await?;
                }
            },
            event = events.recv() => match event {
                Some(MachineEvent::NetworkLost(reason)) => {
                    sender.send(&ToLibrary::NetworkLost(reason), &[]).await?;
                }
                Some(MachineEvent::Ended(end)) => {
                    sender.send(&ToLibrary::Ended(end), &[]).await?;
                    return Ok(());
                }
                Some(MachineEvent::Crashed(failure)) => {
                    return Err(io::Error::other(failure.to_string()).into());
                }
                None => return Err(io::Error::other("the engine ended without a word").into()),
            },
            Some(error) = failed.recv() => return Err(error.into()),
        }
    }
}

/// Answers until a VM was started; `None` where none was.
async fn start(
    engine: &impl Engine,
    sender: &Sender,
    receiver: &mut IpcReceiver<ToDaemon>,
) -> Result<Option<StartedMachine>, IpcError> {
    while let Some((message, descriptors)) = receiver.receive().await? {
        match message {
            ToDaemon::Probe => {
                let host = engine.host().await;
                sender.send(&ToLibrary::Host(host), &[]).await?;
            }
            ToDaemon::Start(Start { plan, restore }) => {
                let started = match sort_ports(&plan, descriptors) {
                    Err(failure) => Err(failure),
                    Ok(ports) => tokio::select! {
                        started = engine.start(plan, ports, restore) => started,
                        // A library that goes, or asks for more before it has an answer.
                        _gone = receiver.receive() => return Ok(None),
                    },
                };
                return match started {
                    Ok(started) => {
                        sender.send(&ToLibrary::Running, &[]).await?;
                        Ok(Some(started))
                    }
                    Err(failure) => {
                        sender.send(&ToLibrary::Failed(failure), &[]).await?;
                        Ok(None)
                    }
                };
            }
            ToDaemon::Request(Request { number, .. }) => {
                let error = Some(protocol_failure("no virtual machine was started"));
                let done = ToLibrary::Done { number, error };
                sender.send(&done, &[]).await?;
            }
        }
    }
    Ok(None)
}

fn sort_ports(
    plan: &capsa_apple_plan::VzPlan,
    descriptors: Vec<OwnedFd>,
) -> Result<EnginePorts, EngineFailure> {
    let wanted = usize::from(plan.console) + usize::from(plan.network.is_some());
    if descriptors.len() != wanted {
        return Err(protocol_failure(&format!(
            "a start with {wanted} sockets came with {}",
            descriptors.len()
        )));
    }
    let mut descriptors = descriptors.into_iter();
    Ok(EnginePorts {
        console: if plan.console {
            descriptors.next()
        } else {
            None
        },
        network: descriptors.next(),
    })
}

fn protocol_failure(reason: &str) -> EngineFailure {
    EngineFailure::new(
        FailureKind::Protocol,
        reason,
        "install capsa-vzd and the library from the same version of capsa",
    )
}

struct Server {
    machine: Arc<dyn Machine>,
    sender: Sender,
    failures: mpsc::Sender<IpcError>,
    requests: Arc<Semaphore>,
}

impl Server {
    /// Begins to carry a request out; its answer goes out when it is done.
    async fn begin(&self, request: Request) {
        // The semaphore is never closed.
        let Ok(permit) = self.requests.clone().acquire_owned().await else {
            return;
        };
        let machine = self.machine.clone();
        let sender = self.sender.clone();
        let failures = self.failures.clone();
        tokio::spawn(async move {
            let sent = carry_out(machine, &sender, &failures, request).await;
            if let Err(error) = sent {
                // One is enough: the daemon ends.
                let _first = failures.try_send(error);
            }
            drop(permit);
        });
    }
}

async fn carry_out(
    machine: Arc<dyn Machine>,
    sender: &Sender,
    failures: &mpsc::Sender<IpcError>,
    Request { number, command }: Request,
) -> Result<(), IpcError> {
    let mut stream = None;
    let result = match command {
        Command::PowerButton => machine.power_button().await,
        Command::Kill => machine.kill().await,
        Command::Pause => machine.pause().await,
        Command::Resume => machine.resume().await,
        Command::SaveState(file) => machine.save_state(&file).await,
        Command::SetBalloon(bytes) => machine.set_balloon(bytes).await,
        Command::VsockConnect(port) => machine.vsock_connect(port).await.map(|connected| {
            stream = Some(connected);
        }),
        Command::VsockListen(port) => machine.vsock_listen(port).await.map(|incoming| {
            let (sender, failures) = (sender.clone(), failures.clone());
            tokio::spawn(hand_on(port, incoming, sender, failures));
        }),
        Command::VsockUnlisten(port) => {
            machine.vsock_unlisten(port);
            Ok(())
        }
    };
    drop(machine);
    let done = ToLibrary::Done {
        number,
        error: result.err(),
    };
    match stream {
        Some(stream) => sender.send(&done, &[stream.as_fd()]).await,
        None => sender.send(&done, &[]).await,
    }
}

/// Hands the guest's connections on until nobody listens any longer.
async fn hand_on(
    port: u32,
    mut incoming: mpsc::Receiver<OwnedFd>,
    sender: Sender,
    failures: mpsc::Sender<IpcError>,
) {
    while let Some(stream) = incoming.recv().await {
        let accepted = ToLibrary::VsockAccepted { port };
        if let Err(error) = sender.send(&accepted, &[stream.as_fd()]).await {
            let _first = failures.try_send(error);
            return;
        }
    }
}
