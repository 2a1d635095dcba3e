//! The agent's service: one thread for each connection, each for one operation.

mod connection;
mod listener;
mod slots;
mod tunnel;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use capsa_agent_protocol::{AgentInfo, Ending, Failure, FailureKind, Reply, Request};
use rustix::process::{Pid, getpid};

pub(crate) use connection::Connection;
pub(crate) use listener::{Channel, Listener, connect_to_host};
pub(crate) use slots::Slot;

use crate::{boot, exec, files, power, report};

/// Stack of a connection's thread in bytes, of which little is touched.
pub(crate) const STACK_BYTES: usize = 256 << 10;

static BOOTED: AtomicBool = AtomicBool::new(false);

/// Serves `listener` from a thread of its own, for ever.
pub(crate) fn start(listener: Listener) -> io::Result<()> {
    let serve = move || {
        loop {
            // Waits while there are as many as may be.
            let slot = slots::take();
            match listener.accept() {
                Ok(connection) => start_connection(connection, slot),
                // A connection that was gone before it was taken is nobody's loss.
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    report::problem(format_args!("cannot take a connection: {error}"));
                    drop(slot);
                    // Descriptors or memory are short: wait until a connection gives some back.
                    slots::wait_for_release();
                }
            }
        }
    };
    thread::Builder::new()
        .stack_size(STACK_BYTES)
        .spawn(serve)
        .map(|_| ())
}

fn is_of_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::ECONNABORTED | libc::EAGAIN | libc::EPROTO)
    )
}

fn start_connection(connection: Connection, slot: Slot) {
    let started = thread::Builder::new()
        .stack_size(STACK_BYTES)
        // What goes wrong with a connection is told on it, or its host is gone.
        .spawn(move || drop(serve(connection, slot)));
    if let Err(error) = started {
        report::problem(format_args!("cannot start a thread: {error}"));
    }
}

fn serve(mut connection: Connection, slot: Slot) -> io::Result<()> {
    connection.greet()?;
    let request = match connection.request() {
        Ok(request) => request,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let failure = Failure::new(FailureKind::Protocol, error.to_string());
            return connection.reply(&Reply::Failed(failure));
        }
        Err(error) => return Err(error),
    };
    match request {
        Request::Exec(request) => exec::serve(connection, slot, &request),
        Request::File(request) => files::serve(connection, request),
        Request::Connect { port } => tunnel::serve(connection, port),
        Request::End(ending) => {
            connection.reply(&Reply::Done)?;
            end(ending);
            Ok(())
        }
        other => {
            let reply = answer(other).unwrap_or_else(Reply::Failed);
            connection.reply(&reply)
        }
    }
}

fn answer(request: Request) -> Result<Reply, Failure> {
    match request {
        Request::Info => Ok(Reply::Info(info())),
        Request::Boot(config) => boot(*config).map(Reply::Booted),
        Request::SetClock(time) => boot::set_clock(time)
            .map(|()| Reply::Done)
            .map_err(|error| Failure::system(&error, "cannot set the clock")),
        Request::Probe { port } => Ok(Reply::Probed(tunnel::connect(port).is_ok())),
        Request::Exec(_) | Request::File(_) | Request::Connect { .. } | Request::End(_) => {
            Err(Failure::new(FailureKind::Invalid, "this is no question"))
        }
    }
}

/// What this agent is.
pub(crate) fn info() -> AgentInfo {
    AgentInfo {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        is_init: is_init(),
        booted: BOOTED.load(Ordering::Acquire),
    }
}

/// Carries out the boot message, once.
pub(crate) fn boot(
    config: capsa_agent_protocol::boot::BootConfig,
) -> Result<capsa_agent_protocol::boot::BootReport, Failure> {
    if BOOTED.swap(true, Ordering::AcqRel) {
        let text = "the guest is set up already, which happens once";
        return Err(Failure::new(FailureKind::Invalid, text));
    }
    let booted = boot::apply(config);
    if booted.is_err() {
        BOOTED.store(false, Ordering::Release);
    }
    booted
}

pub(crate) fn is_init() -> bool {
    getpid() == Pid::INIT
}

fn end(ending: Ending) {
    if is_init() {
        power::ask_init(ending);
    } else {
        power::ask_foreign_init(ending);
    }
}
