//! How requests run beside the event loop: with io_uring where the host has it and the disk is a plain file, else on
//! threads.

mod threads;
mod uring;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::atomic::GuestMemoryLoadGuard;

pub(super) use self::threads::Threads;
pub(super) use self::uring::Uring;
use super::backend::Backend;
use super::request::Request;
use crate::GuestRam;

/// Requests in flight at once. More stay in the queues.
pub(super) const MAX_IN_FLIGHT: usize = 256;

/// Which way to run requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring if it can be used, else threads.
    #[default]
    Auto,
    /// Threads.
    Threads,
    /// io_uring, or an error.
    IoUring,
}

/// Runs on each new thread first, to install its seccomp filter.
pub type ThreadHook = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A request on its way.
pub(super) struct Job {
    /// Comes back with the result. Below [`MAX_IN_FLIGHT`], used for one job at a time.
    pub(super) tag: usize,
    pub(super) request: Request,
    /// Flush after a write.
    pub(super) write_through: bool,
    /// Keeps the guest memory that the request points to mapped.
    pub(super) ram: GuestMemoryLoadGuard<GuestRam>,
}

/// How a job ended.
pub(super) type Done = (usize, io::Result<()>);

/// Runs jobs. All of them are done, or waited for, before it is dropped.
pub(super) trait Engine: Send {
    /// Takes a job, which may begin only upon [`start`](Self::start), or be done at once: [`has_results`](Self::has_results)
    /// tells, and nothing else does.
    fn submit(&mut self, job: Job);

    /// Begins what was submitted.
    fn start(&mut self);

    /// Readable when [`reap`](Self::reap) has something.
    fn completion(&self) -> Arc<OwnedFd>;

    /// Whether [`reap`](Self::reap) has something already, as far as that can be told without a system call.
    fn has_results(&mut self) -> bool {
        false
    }

    /// Moves results to `done`. Does not block.
    fn reap(&mut self, done: &mut Vec<Done>);

    /// Waits for all jobs and moves their results to `done`.
    fn drain(&mut self, done: &mut Vec<Done>);
}

/// Makes the engine for a disk.
pub(super) fn make(
    kind: EngineKind,
    backend: &Arc<dyn Backend>,
    threads: usize,
    hook: Option<ThreadHook>,
) -> io::Result<Box<dyn Engine>> {
    if kind != EngineKind::Threads {
        match Uring::new(Arc::clone(backend)) {
            Ok(uring) => return Ok(Box::new(uring)),
            Err(error) if kind == EngineKind::IoUring => return Err(error),
            Err(_) => {}
        }
    }
    Ok(Box::new(Threads::new(Arc::clone(backend), threads, hook)?))
}
