//! Starting to serve the host, beside whatever else the guest does.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::process::{Resource, Rlimit, getpid, getrlimit, set_child_subreaper, setrlimit};

use crate::events::{Event, Events};
use crate::serve::{self, Channel, Listener};
use crate::{control, reap, report};

/// The first argument of an agent that is not the first process.
pub(crate) const ROLE: &str = "serve";
/// Descriptors for the most connections that are served at once.
const OPEN_FILES: u64 = 65536;
/// The kernel kills processes for their memory by this number; this one says never.
const NEVER_KILLED: &str = "-1000";
/// Larger pieces of memory go back to the system when they are freed, in bytes.
const KEPT_PIECE: i32 = 64 << 10;

static OF_A_GUEST: AtomicBool = AtomicBool::new(true);

/// Whether the agent is in a guest, and not in a test.
pub(crate) fn is_of_a_guest() -> bool {
    OF_A_GUEST.load(Ordering::Relaxed)
}

/// Serves the host, and tells it so. Processes that end must be [collected](reap::collect).
pub(crate) fn start(channel: &Channel) -> io::Result<()> {
    protect();
    let listener = Listener::new(channel)?;
    serve::start(listener)?;
    control::report_panics();
    // A host that does not listen there learns from a connection of its own that the agent is there.
    if let Ok(socket) = serve::connect_to_host(channel) {
        let from_host = control::greet(socket)?;
        thread::Builder::new()
            .stack_size(serve::STACK_BYTES)
            .spawn(move || drop(control::serve(from_host)))?;
    }
    Ok(())
}

fn protect() {
    // SAFETY: these set numbers of the C library's allocator. One arena serves all threads: each of
    // its own would keep what its largest command took.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT_PIECE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_PIECE);
    }
    // Where it may not, in a test, it is as any other process.
    let _ = fs::write("/proc/self/oom_score_adj", NEVER_KILLED);
    let now = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: Some(OPEN_FILES),
        maximum: now.maximum.map(|maximum| maximum.max(OPEN_FILES)),
    };
    let allowed = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    if setrlimit(Resource::Nofile, all).is_err()
        && let Err(error) = setrlimit(Resource::Nofile, allowed)
    {
        report::problem(format_args!(
            "cannot raise the limit of open files: {error}"
        ));
    }
}

/// The agent beside another init, or, with a directory of sockets, outside of any guest.
pub(crate) fn run_alone(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let channel = match (arguments.next(), arguments.next()) {
        (None, _) => Channel::Vsock,
        (Some(option), Some(directory)) if option == "--directory" => {
            OF_A_GUEST.store(false, Ordering::Relaxed);
            Channel::Directory(directory.into())
        }
        _ => {
            report::problem("usage: capsa-agent serve [--directory DIR]");
            return ExitCode::from(2);
        }
    };
    let served = Events::listen().and_then(|mut events| {
        // What a command leaves behind is collected here.
        set_child_subreaper(Some(getpid()))?;
        start(&channel)?;
        serve_until_told(&mut events)
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::problem(format_args!("cannot serve the host: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn serve_until_told(events: &mut Events) -> io::Result<()> {
    loop {
        for event in events.wait(None)? {
            match event {
                Event::ChildEnded => {
                    reap::collect(|_| {});
                }
                Event::PowerOff | Event::Restart => return Ok(()),
            }
        }
    }
}
