//! Starting QEMU: everything up to the guest's first instruction.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use capsa_core::{
    BackendKind, BootPhase, BootSpec, ConsoleInput, ConsoleIo, Error, LaunchedVm, Result, VmSpec,
};
use capsa_guest::Arch;
use capsa_process::console::{ConsolePorts, ConsoleRelay};
use capsa_process::{BootFiles, Lifeline, Program, Supervised, host_tsc_khz};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::arguments::{self, Accelerator, Options, handed};
use crate::devices::{Bus, DevicePlan};
use crate::installation::Installation;
use crate::log::{self, LogFacts};
use crate::network;
use crate::qmp::{Qmp, QmpError};
use crate::uefi::{self, Machine};
use crate::vm::{self, Balloon, Parts};

/// What is ready before QEMU is started.
struct Prepared {
    program: Program,
    lifeline: Lifeline,
    ours: Ours,
}

/// The caller's ends of what QEMU is given.
struct Ours {
    qmp: StdUnixStream,
    errors: OwnedFd,
    log: OwnedFd,
    console: Option<ConsolePorts>,
    network: Option<OwnedFd>,
}

/// Starts a VM. When this is dropped half-way, everything that was started ends.
pub(crate) async fn launch(
    spec: &VmSpec,
    installation: &Installation,
    accelerator: Accelerator,
) -> Result<LaunchedVm> {
    let begin = Instant::now();
    let (owned_spec, owned_installation) = (spec.clone(), installation.clone());
    let started = spawn_blocking(move || {
        let sandbox = owned_installation.sandbox;
        let mut machine = match &owned_spec.boot {
            BootSpec::Uefi(boot) => uefi::machine(&owned_spec, boot, accelerator, sandbox)?,
            _ => direct_boot(&owned_spec, accelerator, sandbox)?,
        };
        let mut plan = add_devices(&mut machine, &owned_spec)?;
        let devices = plan.start_process()?;
        let program = Program::new(&owned_installation.program);
        let prepared = prepare(program, &owned_spec, machine)
            .map_err(|error| Error::io("cannot make the sockets of a VM", error))?;
        start(prepared).map(|started| (started, devices, plan.vsock))
    });
    let (started, mut devices, vsock) = started.await.map_err(|_| cancelled())??;
    let Started {
        child,
        lifeline,
        ours,
    } = started;
    let cannot_watch = |error| Error::io("cannot watch QEMU", error);
    let process = Supervised::new(child, Some(ours.errors)).map_err(cannot_watch)?;
    let log = pipe::Receiver::from_owned_fd(ours.log).map_err(cannot_watch)?;
    let (sender, facts) = watch::channel(LogFacts::default());
    let log = tokio::spawn(log::follow(log, sender));
    let (relay, console) = relay(ours.console).map_err(cannot_watch)?;
    let mut qmp = Qmp::new(ours.qmp).map_err(cannot_watch)?;
    let mut warnings = Vec::new();
    if let Some(devices) = &mut devices {
        match devices.ready().await {
            Ok(told) => warnings = told,
            Err(error) => {
                process.kill();
                process.ended().await;
                return Err(error);
            }
        }
    }
    if let Err(error) = begin_running(&mut qmp).await {
        return Err(failed(process, error).await);
    }
    let handle = vm::start(Parts {
        process,
        lifeline,
        qmp,
        log,
        facts,
        relay,
        firmware: matches!(spec.boot, BootSpec::Uefi(_)),
        devices,
        vsock,
        network: ours.network,
        balloon: spec.balloon.then(|| Balloon {
            memory: spec.memory.as_bytes(),
            target: AtomicU64::new(0),
        }),
        start_duration: begin.elapsed(),
    })?;
    Ok(LaunchedVm {
        handle: Box::new(handle),
        console,
        warnings,
    })
}

/// The kernel command line. Blocks for some milliseconds, the first time.
///
/// # Errors
/// [`Error::CommandLine`] where it does not fit.
pub(crate) fn guest_command_line(spec: &VmSpec, accelerator: Accelerator) -> Result<String> {
    let given = match &spec.boot {
        BootSpec::Linux(boot) => boot.command_line.as_str(),
        _ => "",
    };
    let line = arguments::command_line(given, accelerator, host_tsc_khz())?;
    Ok(line)
}

/// A machine that boots a Linux kernel directly.
fn direct_boot(spec: &VmSpec, accelerator: Accelerator, sandbox: bool) -> Result<Machine> {
    let files = BootFiles::open(spec, BackendKind::Qemu, Arch::X86_64)?;
    let command_line = guest_command_line(spec, accelerator)?;
    let options = Options {
        accelerator,
        sandbox,
        command_line: &command_line,
        initramfs: files.initramfs.is_some(),
    };
    let arguments = arguments::arguments(spec, options);
    let mut descriptors = vec![(handed::KERNEL, files.kernel.into())];
    if let Some(initramfs) = files.initramfs {
        descriptors.push((handed::INITRAMFS, initramfs.into()));
    }
    Ok(Machine {
        arguments,
        descriptors,
    })
}

/// Opens the devices that run in a process of their own, or that the machine does not add itself.
fn add_devices(machine: &mut Machine, spec: &VmSpec) -> Result<DevicePlan> {
    let numbers = machine.descriptors.iter().map(|(number, _)| number + 1);
    let first = numbers.max().unwrap_or(0).max(handed::FIRST_DEVICE);
    let mut plan = match &spec.boot {
        BootSpec::Uefi(_) => {
            // Its disks are QEMU's.
            let mut rest = spec.clone();
            rest.disks.clear();
            DevicePlan::open(&rest, Bus::Pci, first)?
        }
        _ => DevicePlan::open(spec, Bus::Mmio, first)?,
    };
    machine.arguments.append(&mut plan.arguments);
    machine.descriptors.append(&mut plan.descriptors);
    Ok(plan)
}

fn prepare(mut program: Program, spec: &VmSpec, machine: Machine) -> io::Result<Prepared> {
    program.arguments(machine.arguments);
    let (qmp, theirs) = StdUnixStream::pair()?;
    program.descriptor(handed::QMP, theirs);
    let (errors, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    program.descriptor(handed::ERRORS, theirs);
    let (log, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    program.descriptor(handed::LOG, theirs);
    let console = if spec.console.enabled {
        let (serial, theirs) = StdUnixStream::pair()?;
        program.descriptor(handed::SERIAL, theirs);
        let (virtio, theirs) = StdUnixStream::pair()?;
        program.descriptor(handed::VIRTIO_CONSOLE, theirs);
        Some(ConsolePorts {
            serial,
            virtio: Some(virtio),
            input: spec.console.input,
        })
    } else {
        None
    };
    for (number, descriptor) in machine.descriptors {
        program.descriptor(number, descriptor);
    }
    let network = match network::sockets(spec)? {
        Some((ours, (number, theirs))) => {
            program.descriptor(number, theirs);
            Some(ours)
        }
        None => None,
    };
    let (lifeline, theirs) = Lifeline::new()?;
    program.descriptor(handed::LIFELINE, theirs);
    Ok(Prepared {
        program,
        lifeline,
        ours: Ours {
            qmp,
            errors,
            log,
            console,
            network,
        },
    })
}

struct Started {
    child: capsa_process::Child,
    lifeline: OwnedFd,
    ours: Ours,
}

fn start(prepared: Prepared) -> Result<Started> {
    let Prepared {
        program,
        lifeline,
        ours,
    } = prepared;
    let child = program.spawn().map_err(|error| {
        Error::start(
            BootPhase::Monitor,
            error.to_string(),
            "check the program and how many processes and descriptors you may have (`ulimit -a`)",
        )
    })?;
    let lifeline = lifeline
        .tie(&child)
        .map_err(|error| Error::io("cannot tie QEMU to this process", error))?;
    Ok(Started {
        child,
        lifeline,
        ours,
    })
}

/// The console's relay, and whether its input needs the serial port to be ready.
type Relay = Option<(ConsoleRelay, ConsoleInput)>;

fn relay(ports: Option<ConsolePorts>) -> io::Result<(Relay, Option<ConsoleIo>)> {
    let Some(ports) = ports else {
        return Ok((None, None));
    };
    let input = ports.input;
    // A virtio console keeps its input until the guest's driver takes it.
    let (relay, io) = ConsoleRelay::start(ports, input == ConsoleInput::Virtio)?;
    Ok((Some((relay, input)), Some(io)))
}

async fn begin_running(qmp: &mut Qmp) -> Result<(), QmpError> {
    qmp.negotiate().await?;
    qmp.execute("cont", Value::Null).await?;
    Ok(())
}

/// Ends what was started, and tells why it did not go on.
async fn failed(process: Supervised, error: QmpError) -> Error {
    if !matches!(error, QmpError::Closed) {
        process.kill();
    }
    let end = process.ended().await;
    let words = end.last_words.trim();
    let reason = match error {
        QmpError::Closed if words.is_empty() => format!("QEMU {}", end.reason),
        QmpError::Closed => format!("QEMU {}: {words}", end.reason),
        error => error.to_string(),
    };
    Error::start(
        BootPhase::Load,
        reason,
        "check the kernel, the memory and the devices that were asked for",
    )
}

/// The runtime shut down while the VM was started.
fn cancelled() -> Error {
    Error::start(
        BootPhase::Monitor,
        "the async runtime shut down",
        "keep the runtime until the VM has started",
    )
}
