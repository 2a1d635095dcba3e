//! Runs the command, and carries its streams.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, WaitStatus, setrlimit};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::time::{ClockId, Timespec, clock_settime};

use super::super::frames::{Frame, Job};
use super::super::{STATUS_CANNOT_RUN, STATUS_NOT_FOUND};
use super::power_off;
use crate::streams;

/// The writing side of the port, for several threads.
#[derive(Clone)]
struct Outside(Arc<Mutex<File>>);

impl Outside {
    fn send(&self, frame: &Frame) {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.write_to(&mut *port).is_err() {
            // Nobody is left to run for.
            power_off();
        }
    }
}

pub(super) fn serve(port: File) -> Result<Infallible> {
    let outside = Outside(Arc::new(Mutex::new(port.try_clone()?)));
    // Reading ends at once while the outside has not opened the port yet, but writing waits for it.
    outside.send(&Frame::Ready);
    let job = match Frame::read_from(&port).context("cannot read from the port")? {
        Some(Frame::Start(job)) => {
            serde_json::from_slice::<Job>(&job).context("cannot read the job")?
        }
        Some(other) => bail!("expected the job, got {other:?}"),
        None => power_off(),
    };
    set_clock(&job)?;
    let last = match start(&job) {
        Ok(running) => Frame::Exited(running.carry(&outside, port)?),
        Err(error) => {
            let status = if error.kind() == io::ErrorKind::NotFound {
                STATUS_NOT_FOUND
            } else {
                STATUS_CANNOT_RUN
            };
            let program = String::from_utf8_lossy(&job.program);
            let directory = String::from_utf8_lossy(&job.directory);
            Frame::Refused(
                status,
                format!("cannot run {program} in {directory}: {error}"),
            )
        }
    };
    // What was written to a file through a mapping reaches the host only now.
    rustix::fs::sync();
    outside.send(&last);
    // The outside takes the machine away as soon as it has read that; it says nothing more before.
    loop {
        thread::park();
    }
}

fn set_clock(job: &Job) -> Result<()> {
    let time = Timespec::try_from(job.time).context("the host's time is out of range")?;
    clock_settime(ClockId::Realtime, time).context("cannot set the clock")
}

/// A stream that the command writes to, and how its pieces travel.
type Output = (OwnedFd, fn(Vec<u8>) -> Frame);

/// A started command and our ends of its streams.
struct Running {
    child: Child,
    input: Option<OwnedFd>,
    outputs: Vec<Output>,
}

fn start(job: &Job) -> io::Result<Running> {
    if let Some(limit) = job.open_files {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(limit),
                maximum: Some(limit),
            },
        )?;
    }
    let text = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
    let mut command = if job.terminal.is_some() {
        // The terminal becomes the command's own only in a session of its own.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--"]).arg(text(&job.program));
        command
    } else {
        Command::new(text(&job.program))
    };
    command
        .args(job.arguments.iter().map(text))
        .current_dir(text(&job.directory))
        .env_clear()
        .envs(
            job.environment
                .iter()
                .map(|(name, value)| (text(name), text(value))),
        );
    match job.terminal {
        Some(size) => start_on_terminal(&mut command, size),
        None => start_on_pipes(&mut command),
    }
}

fn start_on_pipes(command: &mut Command) -> io::Result<Running> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut outputs: Vec<Output> = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        outputs.push((stdout.into(), Frame::Output));
    }
    if let Some(stderr) = child.stderr.take() {
        outputs.push((stderr.into(), Frame::Error));
    }
    let input = child.stdin.take().map(OwnedFd::from);
    Ok(Running {
        child,
        input,
        outputs,
    })
}

fn start_on_terminal(command: &mut Command, (rows, columns): (u16, u16)) -> io::Result<Running> {
    let ours = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&ours)?;
    rustix::pty::unlockpt(&ours)?;
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&ours, size)?;
    let name = rustix::pty::ptsname(&ours, Vec::new())?;
    let theirs = OpenOptions::new()
        .read(true)
        .write(true)
        .open(OsString::from_vec(name.into_bytes()))?;
    let child = command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(theirs)
        .spawn()?;
    let input = ours.try_clone()?;
    Ok(Running {
        child,
        input: Some(input),
        outputs: vec![(ours, Frame::Output)],
    })
}

impl Running {
    /// Carries the streams until the command has ended. Returns its exit status.
    fn carry(self, outside: &Outside, port: File) -> Result<u8> {
        let (over, ended) = streams::ending()?;
        let mut readers: Vec<JoinHandle<Result<()>>> = Vec::new();
        for (stream, frame) in self.outputs {
            let (outside, over) = (outside.clone(), over.try_clone()?);
            readers.push(thread::spawn(move || {
                streams::carry(&stream, &over, |piece| outside.send(&frame(piece.to_vec())))
            }));
        }
        let input = self.input;
        thread::spawn(move || carry_input(port, input));

        let status = wait_for(self.child.id())?;

        drop(ended);
        for reader in readers {
            reader
                .join()
                .map_err(|_| anyhow::anyhow!("a thread that carries output has panicked"))??;
        }
        Ok(status)
    }
}

/// As the first process we inherit the orphans of all others, so they are collected here too.
fn wait_for(child: u32) -> Result<u8> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if Pid::as_raw(Some(pid)).unsigned_abs() == child => {
                return Ok(exit_status(status));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the command"),
        }
    }
}

fn exit_status(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 255,
    };
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Carries what comes from outside to the command, and ends the machine when the outside has gone.
fn carry_input(mut port: File, input: Option<OwnedFd>) {
    let mut input = input.map(File::from);
    loop {
        match Frame::read_from(&mut port) {
            Ok(Some(Frame::Input(data))) => {
                if let Some(open) = &mut input
                    && open.write_all(&data).is_err()
                {
                    // The command reads no more; that is its own business.
                    input = None;
                }
            }
            Ok(Some(Frame::InputEnd)) => input = None,
            _ => power_off(),
        }
    }
}
