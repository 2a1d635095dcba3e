//! The process that looks after one detached sandbox.

use std::error::Error as StdError;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use capsa_agent_client::{ChildStderr, ChildStdout};
use capsa_core::{Error, Result, VmExit};
use tokio::io::AsyncReadExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::control::{Ended, Facts, LetGo, Start};
use super::output_log::OutputLog;
use super::record::{self, CONSOLE, Claim, Registry, SandboxInfo, SandboxState};
use super::server::{Served, Server};
use crate::keepers::{self, Birth, frames};
use crate::network::{InterfacePlan, VmNetworkFacts};
use crate::sandbox::config::SandboxConfig;
use crate::sandbox::machine::Machine;
use crate::sandbox::{Command, CommandEnd, Sandbox, SandboxError, start};

// UNSAFETY: the macro names the section in which the C library finds functions to call ahead of
// `main`; see there.
#[allow(unsafe_code, reason = "the role's hook ahead of main")]
mod role {
    capsa_process::role! {
        /// Looks after a detached sandbox.
        pub(crate) static KEEPER: "keeper", begins super::BEGINNING, runs super::keep;
    }
}
pub(super) use role::KEEPER;

/// The first message, with the conversation's stream beside it.
pub(super) const BEGINNING: &[u8] = b"capsa-keeper\0";
/// How long a guest may take to shut down when its command has ended or the keeper is asked to end.
const GRACE: Duration = Duration::from_secs(5);
/// How long those who wait for the end may take to hear of it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How much of the console is kept.
const CONSOLE_BYTES: usize = 64 << 10;
/// How much of a command's output is under way to the log.
const OUTPUT_PIECE: usize = 32 << 10;

fn keep(socket: OwnedFd) -> std::result::Result<(), Box<dyn StdError>> {
    let stream = keepers::received(socket)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut conversation = UnixStream::from_std(stream)?;
        let Some(start) = frames::receive::<Start>(&mut conversation).await? else {
            return Ok(());
        };
        if let Err(error) = run(&mut conversation, start).await {
            frames::send(&mut conversation, &Birth::<Facts>::Failed(error.into())).await?;
        }
        Ok(())
    })
}

/// From the start to the end. An error is for the creator, who still waits then.
async fn run(conversation: &mut UnixStream, start: Start) -> Result<()> {
    let Start {
        config,
        command,
        remove_at_end,
        network,
    } = start;
    let claim = Registry::open()?.claim(record(&config, command.as_ref(), remove_at_end))?;
    match begin(conversation, config, network, claim.socket()).await {
        Ok(Some((sandbox, listener))) => {
            live(conversation, sandbox, listener, claim, command).await;
            Ok(())
        }
        // The creator is gone.
        Ok(None) => {
            claim.remove();
            Ok(())
        }
        Err(error) => {
            claim.remove();
            Err(error)
        }
    }
}

fn record(config: &SandboxConfig, command: Option<&Command>, remove_at_end: bool) -> SandboxInfo {
    SandboxInfo::new(record::Facts {
        name: config.name.clone().unwrap_or_default(),
        rootfs: config.rootfs.to_string(),
        command: command.map(Command::words).unwrap_or_default(),
        cpus: config.cpus,
        memory: config.memory,
        remove_at_end,
    })
}

/// Boots; `None` where the creator went away meanwhile.
async fn begin(
    conversation: &mut UnixStream,
    config: SandboxConfig,
    network: Option<InterfacePlan>,
    socket: std::path::PathBuf,
) -> Result<Option<(Sandbox, UnixListener)>> {
    let listener = UnixListener::bind(&socket)
        .map_err(|error| Error::io(format!("cannot make {}", socket.display()), error))?;
    let start = async {
        let network = match network {
            Some(plan) => Some(plan.interface().await?),
            None => None,
        };
        start::start(&config, network).await
    };
    let started = tokio::select! {
        started = start => started?,
        _gone = frames::receive::<LetGo>(conversation) => return Ok(None),
    };
    Ok(Some((Sandbox::own(started, config), listener)))
}

/// Whether somebody still holds the sandbox.
#[derive(Clone, Copy, PartialEq)]
enum Hold {
    Held,
    LetGo,
    Dropped,
}

async fn live(
    conversation: &mut UnixStream,
    sandbox: Sandbox,
    listener: UnixListener,
    mut claim: Claim,
    command: Option<Command>,
) {
    let Machine::Own(vm) = sandbox.machine.clone() else {
        return claim.remove();
    };
    let log = OutputLog::create(claim.folder()).ok();
    let (ended, watching) = watch::channel(None);
    let facts = Facts {
        name: claim.record().name.clone(),
        backend: sandbox.backend(),
        timings: sandbox.timings().clone(),
        warnings: sandbox.warnings().iter().map(ToString::to_string).collect(),
        config: (*sandbox.config).clone(),
        network: vm.network().map(VmNetworkFacts::of),
    };
    let served = Served {
        vm: vm.clone(),
        facts: facts.clone(),
        output: log.as_ref().map(OutputLog::reader),
        ended: watching,
    };
    let mut server = Server::new(listener, served);
    let running = claim.update(|record| {
        record.backend = Some(facts.backend);
        record.monitor = vm.process_id();
        record.state = SandboxState::Running;
    });
    let begun = match running {
        Ok(()) => Birth::Alive(facts),
        Err(error) => Birth::Failed(error.into()),
    };
    let failed = matches!(begun, Birth::Failed(_));
    let mut hold = match frames::send(conversation, &begun).await {
        Ok(()) if !failed => Hold::Held,
        _ => Hold::Dropped,
    };

    let mut command_end = None;
    let mut terminate = signal(SignalKind::terminate()).ok();
    // The terminal on which it was started may go.
    let _hang_up = signal(SignalKind::hangup());
    let main_command = async {
        match command {
            Some(command) => Some(run_command(&sandbox, command, log).await),
            None => std::future::pending().await,
        }
    };
    tokio::pin!(main_command);
    let exit = loop {
        if hold == Hold::Dropped {
            let _gone = vm.kill().await;
            break vm.wait().await;
        }
        tokio::select! {
            exit = vm.wait() => break exit,
            end = &mut main_command, if command_end.is_none() => {
                command_end = end;
                break stop(&vm).await;
            }
            heard = frames::receive::<LetGo>(conversation), if hold == Hold::Held => {
                hold = match heard {
                    Ok(Some(LetGo)) => {
                        // Whoever let go may be gone already.
                        let _unheard = frames::send(conversation, &LetGo).await;
                        Hold::LetGo
                    }
                    _ => Hold::Dropped,
                };
            }
            _served = server.serve() => break stop(&vm).await,
            () = terminated(&mut terminate) => break stop(&vm).await,
        }
    };
    // What is still to be read of a command that was cut off is in the log when this is over.
    if command_end.is_none() {
        command_end = tokio::time::timeout(FAREWELL, async {
            match claim.record().command.is_empty() {
                true => None,
                false => main_command.as_mut().await,
            }
        })
        .await
        .ok()
        .flatten();
    }
    let timed_out = sandbox.time_is_over();
    if timed_out && claim.record().command.is_empty().eq(&false) {
        command_end = Some(CommandEnd::TimedOut);
    }
    write_console(&vm, claim.folder());
    let end = Ended {
        exit: exit.clone(),
        command: command_end.clone(),
    };
    let written = claim.update(|record| {
        record.state = SandboxState::Ended {
            at: keepers::now(),
            exit,
            command: command_end,
        };
    });
    if let Err(error) = written {
        tracing::warn!(%error, "the end of a sandbox cannot be written down");
    }
    ended.send_replace(Some(end));
    // The server's own wait for connections is over: those that are there get their answers.
    let _late = tokio::time::timeout(FAREWELL, server.finish()).await;
    if hold == Hold::Dropped || hold == Hold::Held || claim.record().remove_at_end {
        claim.remove();
    } else {
        claim.keep();
    }
}

async fn stop(vm: &crate::VmHandle) -> VmExit {
    if vm.stop(GRACE).await.is_err() {
        let _gone = vm.kill().await;
    }
    vm.wait().await
}

async fn terminated(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

fn write_console(vm: &crate::VmHandle, folder: &std::path::Path) {
    let Ok(console) = vm.console() else {
        return;
    };
    if let Err(error) = std::fs::write(folder.join(CONSOLE), console.tail(CONSOLE_BYTES)) {
        tracing::warn!(%error, "the console's end cannot be written");
    }
}

/// Runs the command that the sandbox is for; what it writes goes to the log.
async fn run_command(sandbox: &Sandbox, command: Command, log: Option<OutputLog>) -> CommandEnd {
    let mut child = match sandbox.spawn(command).await {
        Ok(child) => child,
        Err(error) => return failed(log, &error),
    };
    drop(child.stdin.take());
    let (pieces, mut written) = mpsc::channel(1);
    let stdout = child.stdout.take().map(Output::Stdout);
    let stderr = child.stderr.take().map(Output::Stderr);
    let readers = async {
        tokio::join!(
            forward(stdout, pieces.clone()),
            forward(stderr, pieces.clone())
        );
        drop(pieces);
    };
    let writer = async {
        let mut log = log;
        while let Some(piece) = written.recv().await {
            if let Some(open) = &mut log
                && let Err(error) = open.append(&piece)
            {
                tracing::warn!(%error, "the output cannot be kept any more");
                log = None;
            }
        }
    };
    let (_, (), status) = tokio::join!(readers, writer, child.wait());
    match status {
        Ok(status) => CommandEnd::Exited(status),
        Err(error) => CommandEnd::Failed {
            code: error.shell_code(),
            reason: error.to_string(),
        },
    }
}

fn failed(log: Option<OutputLog>, error: &SandboxError) -> CommandEnd {
    let reason = error.to_string();
    if let Some(mut log) = log {
        let _unwritten = log.append(format!("capsa: error: {reason}\n").as_bytes());
    }
    CommandEnd::Failed {
        code: error.shell_code(),
        reason,
    }
}

enum Output {
    Stdout(ChildStdout),
    Stderr(ChildStderr),
}

async fn forward(output: Option<Output>, to: mpsc::Sender<Vec<u8>>) -> Option<()> {
    let mut output = output?;
    let mut buffer = vec![0; OUTPUT_PIECE];
    loop {
        let read: io::Result<usize> = match &mut output {
            Output::Stdout(stream) => stream.read(&mut buffer).await,
            Output::Stderr(stream) => stream.read(&mut buffer).await,
        };
        match read {
            Ok(0) | Err(_) => return Some(()),
            Ok(count) => to.send(buffer.get(..count)?.to_vec()).await.ok()?,
        }
    }
}
