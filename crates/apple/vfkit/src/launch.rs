//! Starting vfkit, and waiting until its guest runs.

use std::env;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use capsa_apple_plan::frame_sockets;
use capsa_core::{BootPhase, ConsoleInput, ConsoleIo, Error, LaunchedVm, Result, VmSpec};
use capsa_process::console::{ConsolePorts, ConsoleRelay};
use capsa_process::{ChildEnd, Program, Supervised};
use rustix::pipe::pipe;
use tempfile::TempDir;

use crate::backend::surroundings;
use crate::console::Bridge;
use crate::handle::{MachineParts, VfkitHandle};
use crate::log::VfkitLog;
use crate::orphan_guard::OrphanGuard;
use crate::plan::{NETWORK_DESCRIPTOR, VfkitPlan};
use crate::rest::{MachineState, RestClient, RestError};
use crate::vsock::VsockPorts;

/// What vfkit is given of the caller's environment.
const VARIABLES: [&str; 5] = ["HOME", "LANG", "PATH", "TMPDIR", "USER"];

/// Starts a VM. Dropping the future ends what was started.
pub(crate) async fn launch(mut program: Program, spec: &VmSpec) -> Result<LaunchedVm> {
    let began = Instant::now();
    let run_directory = run_directory()?;
    let plan = VfkitPlan::new(spec, &surroundings(spec, run_directory.path()))?;
    let vsock = VsockPorts::bind(&plan.vsock).map_err(cannot("make the vsock sockets"))?;

    let (log_reader, log_writer) = cloexec_pipe().map_err(cannot("make a pipe"))?;
    let null = || {
        std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
    };
    program
        .arguments(plan.arguments.iter().cloned())
        .descriptor(0, null().map_err(cannot("open /dev/null"))?)
        // Its web server logs each request there, besides its own log on the error output.
        .descriptor(1, null().map_err(cannot("open /dev/null"))?)
        .descriptor(2, log_writer)
        .variable("GIN_MODE", "release");
    for name in VARIABLES {
        if let Some(value) = env::var_os(name) {
            program.variable(name, value);
        }
    }
    let network = if plan.network {
        let (host, guest) = frame_sockets().map_err(cannot("make the network's sockets"))?;
        program.descriptor(NETWORK_DESCRIPTOR, guest);
        Some(host)
    } else {
        None
    };

    let child = program.spawn().map_err(|error| {
        Error::start(
            BootPhase::Monitor,
            error.to_string(),
            "check that this vfkit runs: vfkit --version",
        )
    })?;
    let log = VfkitLog::follow(log_reader).map_err(cannot("read vfkit's log"))?;
    let id = child.id();
    let child = Supervised::new(child, None).map_err(cannot("follow vfkit"))?;
    let guard = OrphanGuard::new(id).map_err(|error| {
        Error::start(
            BootPhase::Monitor,
            error.to_string(),
            "check that /bin/sh runs",
        )
    })?;

    let rest = RestClient::new(plan.rest_socket.clone());
    let started = Starting {
        child: &child,
        log: &log,
        rest: &rest,
        vsock: &vsock,
        console: plan.console,
    };
    let (console, relay) = match spec.start_timeout {
        None => started.run(&plan).await?,
        Some(limit) => match tokio::time::timeout(limit, started.run(&plan)).await {
            Ok(started) => started?,
            Err(_) => {
                return Err(Error::Timeout {
                    operation: log.with_end("the start of vfkit"),
                    limit,
                    console: String::new(),
                });
            }
        },
    };
    let handle = VfkitHandle::new(MachineParts {
        child,
        guard,
        log,
        rest,
        vsock,
        network,
        relay,
        run_directory,
        start_duration: began.elapsed(),
    });
    Ok(LaunchedVm {
        handle: Box::new(handle),
        console,
        warnings: Vec::new(),
    })
}

type Relay = (Bridge, ConsoleRelay);

fn open_console(plan: &VfkitPlan, log: &VfkitLog) -> Result<(Option<ConsoleIo>, Option<Relay>)> {
    let terminal = log.progress().borrow().pty.clone();
    let Some(terminal) = terminal.filter(|_| plan.console) else {
        return Ok((None, None));
    };
    let failed = |error: io::Error| Error::Console {
        reason: format!("{}: {error}", terminal.display()),
    };
    let (bridge, socket) = Bridge::open(&terminal).map_err(failed)?;
    let ports = ConsolePorts {
        serial: socket,
        virtio: None,
        input: ConsoleInput::Serial,
    };
    let (relay, console) = ConsoleRelay::start(ports, true).map_err(failed)?;
    Ok((Some(console), Some((bridge, relay))))
}

struct Starting<'a> {
    child: &'a Supervised,
    log: &'a VfkitLog,
    rest: &'a RestClient,
    vsock: &'a VsockPorts,
    console: bool,
}

impl Starting<'_> {
    /// Waits until the guest runs, and opens its console.
    async fn run(&self, plan: &VfkitPlan) -> Result<(Option<ConsoleIo>, Option<Relay>)> {
        self.until_it_runs().await?;
        let error = match open_console(plan, self.log) {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        // The terminal goes with vfkit: where that is why, its end and its last words say more.
        tokio::select! {
            biased;
            end = self.child.ended() => Err(self.ended_early(end).await),
            Ok(_) = self.rest.state() => Err(error),
        }
    }

    /// Waits until the guest runs. Each line of the log is a reason to ask: vfkit writes some after
    /// it has started the guest and made every socket, and serves requests from before that.
    async fn until_it_runs(&self) -> Result<()> {
        let mut progress = self.log.progress();
        loop {
            let line = async {
                if progress.changed().await.is_err() {
                    // The log is closed: what is left is the end of the process.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                end = self.child.ended() => return Err(self.ended_early(end).await),
                () = line => {}
            }
            let has_console = !self.console || progress.borrow_and_update().pty.is_some();
            if has_console && self.vsock.all_there() && self.asked_runs().await? {
                return Ok(());
            }
        }
    }

    async fn asked_runs(&self) -> Result<bool> {
        // vfkit may end while it is asked.
        let state = tokio::select! {
            biased;
            end = self.child.ended() => return Err(self.ended_early(end).await),
            state = self.rest.state() => state,
        };
        match state {
            Ok(MachineState::Running) => Ok(true),
            Ok(MachineState::Error) => Err(self.failed("the virtual machine failed")),
            Ok(_) => Ok(false),
            // It does not serve requests yet, or it is ending: the log or its end goes on from here.
            Err(RestError::Http(error)) if error.is_broken_connection() => Ok(false),
            Err(error) => Err(self.failed(&format!("vfkit was asked for the state, but {error}"))),
        }
    }

    async fn ended_early(&self, end: ChildEnd) -> Error {
        self.log.finished().await;
        self.failed(&format!("vfkit {}", end.reason))
    }

    fn failed(&self, reason: &str) -> Error {
        Error::start(
            BootPhase::Monitor,
            self.log.with_end(reason),
            "see vfkit's log above for the cause",
        )
    }
}

/// A folder of this user's own with a short path, for the sockets.
fn run_directory() -> Result<TempDir> {
    let base = env::temp_dir();
    let short = base.as_os_str().len() <= 64;
    let base = if short {
        base.as_path()
    } else {
        Path::new("/tmp")
    };
    tempfile::Builder::new()
        .prefix("capsa-")
        .tempdir_in(base)
        .map_err(|error| Error::io(format!("cannot make a folder in {}", base.display()), error))
}

fn cloexec_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe()?;
    for end in [&reader, &writer] {
        rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok((reader, writer))
}

fn cannot(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::io(format!("cannot {what}"), error)
}
