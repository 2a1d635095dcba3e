//! The outer end of a lab run: hands the command in, carries its streams, and brings its exit status back.

use std::env;
use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::process::{Resource, Signal, getrlimit};

use super::frames::{Frame, Job};
use super::machine::{Machine, MachineOptions};
use super::terminal::{self, RawTerminal};
use super::{STATUS_LAB_FAILED, STATUS_TIMED_OUT};

/// Variables that speak of places which are not the same inside.
const NOT_INSIDE: &[&str] = &[
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
    "SSH_AUTH_SOCK",
    "TMUX",
    "STY",
];

const PIECE: usize = 32 << 10;

/// The command with this process's own surroundings.
pub(super) fn job(command: &[OsString], tty: bool) -> Result<Job> {
    let (program, arguments) = command.split_first().context("no command was given")?;
    let directory = env::current_dir().context("cannot tell the working directory")?;
    let mut environment: Vec<(Vec<u8>, Vec<u8>)> = env::vars_os()
        .filter(|(name, _)| !NOT_INSIDE.iter().any(|hidden| name == hidden))
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect();
    environment.retain(|(name, _)| name != b"TMPDIR" && name != b"CAPSA_LAB");
    environment.push((b"CAPSA_LAB".to_vec(), b"1".to_vec()));
    environment.push((
        b"TMPDIR".to_vec(),
        super::inside::TEMPORARY.as_bytes().to_vec(),
    ));
    Ok(Job {
        program: program.as_bytes().to_vec(),
        arguments: arguments
            .iter()
            .map(|argument| argument.as_bytes().to_vec())
            .collect(),
        directory: directory.into_os_string().into_vec(),
        environment,
        time: Duration::ZERO,
        open_files: getrlimit(Resource::Nofile).current,
        terminal: if tty { Some(terminal::size()?) } else { None },
    })
}

/// Starts the machine, runs the job in it, and ends the machine.
pub(super) fn run(
    options: &MachineOptions<'_>,
    mut job: Job,
    timeout: Option<Duration>,
) -> Result<u8> {
    let raw = if job.terminal.is_some() {
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let (machine, port) = Machine::start(options)?;
    let machine = Arc::new(Mutex::new(machine));
    let timed_out = Arc::new(AtomicBool::new(false));
    if let Some(timeout) = timeout {
        end_after(timeout, &machine, &timed_out, raw.as_ref());
    }

    let outcome = converse(&port, &mut job);

    if timed_out.load(Ordering::SeqCst) {
        // The timer's thread is about to end this process.
        loop {
            thread::park();
        }
    }
    let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
    machine.end();
    drop(raw);
    match outcome? {
        Ending::Exited(status) => Ok(status),
        Ending::Refused(status, message) => {
            eprintln!("lab: {message}");
            Ok(status)
        }
        Ending::NobodyReads => Ok(128 + Signal::PIPE.as_raw() as u8),
        Ending::MachineLost => {
            eprintln!("{}", machine.last_words());
            eprintln!(
                "lab: the machine ended before the command did; above is the last that it said"
            );
            Ok(STATUS_LAB_FAILED)
        }
    }
}

enum Ending {
    Exited(u8),
    Refused(u8, String),
    MachineLost,
    /// Our own standard output or error was closed.
    NobodyReads,
}

fn converse(port: &UnixStream, job: &mut Job) -> Result<Ending> {
    let with_terminal = job.terminal.is_some();
    loop {
        let frame = match Frame::read_from(port) {
            Ok(Some(frame)) => frame,
            // A cut frame too means that QEMU has gone.
            Ok(None) => return Ok(Ending::MachineLost),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(error).context("the machine's inside sent something unexpected");
            }
            Err(_) => return Ok(Ending::MachineLost),
        };
        let written = match frame {
            Frame::Ready => {
                job.time = SystemTime::now().duration_since(UNIX_EPOCH)?;
                let start = Frame::Start(serde_json::to_vec(job)?);
                if start.write_to(port).is_err() {
                    return Ok(Ending::MachineLost);
                }
                feed_input(port.try_clone()?, with_terminal);
                Ok(())
            }
            Frame::Output(data) => write_through(io::stdout().lock(), &data),
            Frame::Error(data) => write_through(io::stderr().lock(), &data),
            Frame::Exited(status) => return Ok(Ending::Exited(status)),
            Frame::Refused(status, message) => return Ok(Ending::Refused(status, message)),
            Frame::Start(_) | Frame::Input(_) | Frame::InputEnd => {
                bail!("the machine's inside sent what only its outside sends")
            }
        };
        if written.is_err() {
            return Ok(Ending::NobodyReads);
        }
    }
}

fn write_through(mut stream: impl Write, data: &[u8]) -> io::Result<()> {
    stream.write_all(data)?;
    stream.flush()
}

/// Carries standard input in from a thread of its own. A terminal is only read where the command was given one too:
/// otherwise a lab in the background would be stopped for reading it.
fn feed_input(port: UnixStream, with_terminal: bool) {
    let stdin = io::stdin();
    if !with_terminal && rustix::termios::isatty(&stdin) {
        // Where the machine is gone already, the reading side finds out.
        let _ = Frame::InputEnd.write_to(&port);
        return;
    }
    thread::spawn(move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let frame = match stdin.lock().read(&mut buffer) {
                Ok(0) => Frame::InputEnd,
                Ok(read) => Frame::Input(buffer[..read].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => Frame::InputEnd,
            };
            if frame.write_to(&port).is_err() || frame == Frame::InputEnd {
                return;
            }
        }
    });
}

/// Ends machine and process when the time is over, whatever the main thread waits for then.
fn end_after(
    timeout: Duration,
    machine: &Arc<Mutex<Machine>>,
    timed_out: &Arc<AtomicBool>,
    raw: Option<&RawTerminal>,
) {
    let (machine, timed_out) = (Arc::clone(machine), Arc::clone(timed_out));
    let restore = raw.map(RawTerminal::restorer);
    thread::spawn(move || {
        thread::sleep(timeout);
        timed_out.store(true, Ordering::SeqCst);
        machine.lock().unwrap_or_else(PoisonError::into_inner).end();
        if let Some(restore) = restore {
            restore.now();
        }
        eprintln!(
            "lab: ended after the {} seconds that --timeout allows",
            timeout.as_secs()
        );
        process::exit(STATUS_TIMED_OUT.into());
    });
}
