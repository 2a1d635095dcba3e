//! An engine whose guest answers lines instead of being a virtual machine. It fails in the way that
//! the word `stand-in=…` of the kernel command line names.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use capsa_apple_plan::{
    EngineFailure, FailureKind, HostLimits, MachineEnd, MacosVersion, VzBoot, VzPlan,
};
use capsa_apple_vz::{
    EVENT_BACKLOG, Engine, EnginePorts, Machine, MachineEvent, StartedMachine, VSOCK_BACKLOG,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

pub(crate) struct StandInEngine;

#[async_trait]
impl Engine for StandInEngine {
    async fn host(&self) -> Result<HostLimits, EngineFailure> {
        Ok(HostLimits {
            macos: MacosVersion::new(15, 1),
            apple_processor: cfg!(target_arch = "aarch64"),
            max_cpus: 8,
            min_memory_bytes: 4 << 20,
            max_memory_bytes: 16 << 30,
            nested_virtualization: false,
        })
    }

    async fn start(
        &self,
        plan: VzPlan,
        ports: EnginePorts,
        restore: Option<PathBuf>,
    ) -> Result<StartedMachine, EngineFailure> {
        let line = match &plan.boot {
            VzBoot::Linux { command_line, .. } => command_line.as_str(),
            VzBoot::Efi { .. } => "",
        };
        match line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("stand-in="))
        {
            Some("refuse") => return Err(framework("Invalid virtual machine configuration.")),
            Some("hang") => std::future::pending().await,
            Some("crash-at-start") => {
                eprintln!("the stand-in crashes at the start");
                std::process::abort();
            }
            _ => {}
        }
        let greeting = match restore {
            Some(file) => fs::read_to_string(file).map_err(|e| framework(&e.to_string()))?,
            None => "login: ".to_owned(),
        };
        let (events, received) = mpsc::channel(EVENT_BACKLOG);
        let machine = Arc::new(StandInMachine {
            state: Mutex::new("running"),
            listeners: Mutex::new(HashMap::new()),
            kept: AtomicU64::new(plan.memory_bytes),
            events: events.clone(),
        });
        let guest = Guest {
            machine: Arc::downgrade(&machine),
            network: ports.network.map(UnixDatagram::from),
            events,
        };
        if let Some(console) = ports.console {
            let console = (|| {
                let console = StdUnixStream::from(console);
                console.set_nonblocking(true)?;
                UnixStream::from_std(console)
            })();
            let console = console.map_err(|error| framework(&error.to_string()))?;
            tokio::spawn(guest.run(console, greeting));
        }
        Ok(StartedMachine {
            machine,
            events: received,
            process_id: None,
        })
    }
}

fn framework(reason: &str) -> EngineFailure {
    EngineFailure::new(FailureKind::Framework, reason, "ask for another machine")
}

struct StandInMachine {
    state: Mutex<&'static str>,
    listeners: Mutex<HashMap<u32, mpsc::Sender<OwnedFd>>>,
    /// What the balloon leaves to the guest, in bytes.
    kept: AtomicU64,
    events: mpsc::Sender<MachineEvent>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StandInMachine {
    fn change(&self, from: &str, to: &'static str) -> Result<(), EngineFailure> {
        let mut state = lock(&self.state);
        if *state != from {
            let reason = format!("the machine is {state}, not {from}");
            return Err(EngineFailure::new(FailureKind::State, reason, "wait"));
        }
        *state = to;
        Ok(())
    }

    async fn end(&self, end: MachineEnd) {
        let _gone = self.events.send(MachineEvent::Ended(end)).await;
    }
}

#[async_trait]
impl Machine for StandInMachine {
    async fn power_button(&self) -> Result<(), EngineFailure> {
        self.end(MachineEnd::PoweredOff).await;
        Ok(())
    }

    async fn kill(&self) -> Result<(), EngineFailure> {
        self.end(MachineEnd::Killed).await;
        Ok(())
    }

    async fn pause(&self) -> Result<(), EngineFailure> {
        self.change("running", "paused")
    }

    async fn resume(&self) -> Result<(), EngineFailure> {
        self.change("paused", "running")
    }

    async fn save_state(&self, file: &Path) -> Result<(), EngineFailure> {
        self.change("paused", "paused")?;
        fs::write(file, "restored: ").map_err(|error| framework(&error.to_string()))
    }

    /// An echo listens on each even port.
    async fn vsock_connect(&self, port: u32) -> Result<OwnedFd, EngineFailure> {
        if port % 2 == 1 {
            let reason = format!("nobody listens on port {port}");
            return Err(EngineFailure::new(
                FailureKind::NobodyListens,
                reason,
                "start it",
            ));
        }
        let pair = || -> io::Result<(StdUnixStream, UnixStream)> {
            let (host, guest) = StdUnixStream::pair()?;
            guest.set_nonblocking(true)?;
            Ok((host, UnixStream::from_std(guest)?))
        };
        let (host, mut guest) = pair().map_err(|error| framework(&error.to_string()))?;
        tokio::spawn(async move {
            let mut heard = Vec::new();
            guest.read_to_end(&mut heard).await?;
            guest.write_all(&heard).await
        });
        Ok(host.into())
    }

    async fn vsock_listen(&self, port: u32) -> Result<mpsc::Receiver<OwnedFd>, EngineFailure> {
        let mut listeners = lock(&self.listeners);
        if listeners.contains_key(&port) {
            let reason = "the port is taken";
            return Err(EngineFailure::new(FailureKind::State, reason, "wait"));
        }
        let (sender, incoming) = mpsc::channel(VSOCK_BACKLOG);
        listeners.insert(port, sender);
        Ok(incoming)
    }

    fn vsock_unlisten(&self, port: u32) {
        lock(&self.listeners).remove(&port);
    }

    async fn set_balloon(&self, bytes: u64) -> Result<(), EngineFailure> {
        self.kept.store(bytes, Ordering::SeqCst);
        Ok(())
    }
}

struct Guest {
    machine: std::sync::Weak<StandInMachine>,
    network: Option<UnixDatagram>,
    events: mpsc::Sender<MachineEvent>,
}

impl Guest {
    async fn run(self, console: UnixStream, greeting: String) -> io::Result<()> {
        let (reader, mut writer) = console.into_split();
        let mut lines = BufReader::new(reader).lines();
        writer.write_all(greeting.as_bytes()).await?;
        while let Some(line) = lines.next_line().await? {
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let number = rest.parse().unwrap_or(0);
            let end = match word {
                "poweroff" => {
                    writer.write_all(b"reboot: Power down\n").await?;
                    MachineEnd::PoweredOff
                }
                "panic" => {
                    writer
                        .write_all(b"Kernel panic - not syncing: as you wish\n")
                        .await?;
                    MachineEnd::PoweredOff
                }
                "fail" => MachineEnd::Failed("Internal Virtualization error.".to_owned()),
                "crash" => {
                    eprintln!("the stand-in crashes as it was told to");
                    std::process::abort();
                }
                "cut" => {
                    let lost = MachineEvent::NetworkLost("the cable was cut".to_owned());
                    let _gone = self.events.send(lost).await;
                    continue;
                }
                "memory" => {
                    let machine = self.machine.upgrade();
                    let kept = machine.map_or(0, |machine| machine.kept.load(Ordering::SeqCst));
                    writer
                        .write_all(format!("memory: {} MiB\n", kept >> 20).as_bytes())
                        .await?;
                    continue;
                }
                "dial" => {
                    let said = self.dial(number).await?;
                    writer
                        .write_all(format!("host said: {said}\n").as_bytes())
                        .await?;
                    continue;
                }
                "frame" => {
                    let answer = self.frame(rest)?;
                    writer
                        .write_all(format!("frame: {answer}\n").as_bytes())
                        .await?;
                    continue;
                }
                _ => {
                    writer
                        .write_all(format!("echo: {line}\n").as_bytes())
                        .await?;
                    continue;
                }
            };
            let _gone = self.events.send(MachineEvent::Ended(end)).await;
            break;
        }
        Ok(())
    }

    /// Connects to a vsock port of the host; an empty answer where nobody listens.
    async fn dial(&self, port: u32) -> io::Result<String> {
        let Some(machine) = self.machine.upgrade() else {
            return Ok(String::new());
        };
        let listener = lock(&machine.listeners).get(&port).cloned();
        let Some(listener) = listener else {
            return Ok("nothing".to_owned());
        };
        let (guest, host) = StdUnixStream::pair()?;
        guest.set_nonblocking(true)?;
        let _gone = listener.send(host.into()).await;
        let mut guest = UnixStream::from_std(guest)?;
        guest.write_all(b"hello").await?;
        guest.shutdown().await?;
        let mut said = String::new();
        guest.read_to_string(&mut said).await?;
        Ok(said)
    }

    /// Sends a text as a frame and waits for the next one that comes.
    fn frame(&self, text: &str) -> io::Result<String> {
        let network = self.network.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        network.send(text.as_bytes())?;
        let mut answer = vec![0; 65536];
        let length = network.recv(&mut answer)?;
        answer.truncate(length);
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}
