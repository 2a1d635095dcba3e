//! The processes that the agent started: who waits for which, and how each ended.
//!
//! One thread collects ended processes, orphans of others included, and tells them here. A process
//! that ended keeps its number until it is collected, so a signal that is sent under this lock to a
//! process that is still listed cannot reach another.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use capsa_agent_protocol::exec::ExitStatus;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Pid;

/// Orphans that end while a process is being started, of which it may be one, are kept up to this
/// number.
const MAX_UNCLAIMED: usize = 65536;

/// A process that somebody waits for.
pub(crate) struct Child {
    pid: Pid,
    /// Becomes readable, for ever, when the process ends.
    ended: OwnedFd,
    status: OnceLock<ExitStatus>,
}

struct Children {
    running: BTreeMap<i32, Arc<Child>>,
    /// Processes that are being started: their numbers are not known yet.
    starting: usize,
    unclaimed: Vec<(i32, ExitStatus)>,
}

static CHILDREN: Mutex<Children> = Mutex::new(Children {
    running: BTreeMap::new(),
    starting: 0,
    unclaimed: Vec::new(),
});

fn children() -> MutexGuard<'static, Children> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process with `start`, and lists it.
pub(crate) fn start<E: From<io::Error>>(
    start: impl FnOnce() -> Result<Pid, E>,
) -> Result<Arc<Child>, E> {
    let ended =
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
    children().starting += 1;
    let started = start();
    let mut children = children();
    children.starting -= 1;
    let result = started.map(|pid| {
        let number = pid.as_raw_nonzero().get();
        let status = OnceLock::new();
        let child = Arc::new(Child { pid, ended, status });
        let early = children.unclaimed.iter().find(|(pid, _)| *pid == number);
        match early.map(|(_, status)| *status) {
            Some(status) => child.end(status),
            None => drop(children.running.insert(number, Arc::clone(&child))),
        }
        child
    });
    if children.starting == 0 {
        children.unclaimed = Vec::new();
    }
    result
}

/// Collects with `collect`, which gives one ended process after the other.
pub(crate) fn collect(mut collect: impl FnMut() -> Option<(Pid, ExitStatus)>) {
    // Held meanwhile: nobody sends a signal to a number that was just freed.
    let mut children = children();
    while let Some((pid, status)) = collect() {
        let number = pid.as_raw_nonzero().get();
        match children.running.remove(&number) {
            Some(child) => child.end(status),
            None if children.starting > 0 && children.unclaimed.len() < MAX_UNCLAIMED => {
                children.unclaimed.push((number, status));
            }
            None => {}
        }
    }
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable once it has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// How it ended.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        self.status.get().copied()
    }

    /// Sends a signal to its process group, unless it has ended.
    pub(crate) fn signal_group(&self, number: i32) {
        let number = if (1..=64).contains(&number) {
            number
        } else {
            return;
        };
        let children = children();
        let pid = self.pid.as_raw_nonzero().get();
        if children.running.contains_key(&pid) {
            // SAFETY: a bare system call; it fails only for signals that do not exist.
            unsafe { libc::kill(-pid, number) };
        }
    }

    fn end(&self, status: ExitStatus) {
        let _ = self.status.set(status);
        // A counter that is raised once cannot overflow.
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
    }
}
