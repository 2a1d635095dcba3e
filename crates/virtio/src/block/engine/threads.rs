//! Requests on a few threads, each carrying out one at a time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

use super::{Done, Engine, Job, ThreadHook};
use crate::block::backend::{Backend, perform};
use crate::reactor::{drain, signal};

pub(crate) struct Threads {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    backend: Arc<dyn Backend>,
    state: Mutex<State>,
    work: Condvar,
    idle: Condvar,
    completion: Arc<OwnedFd>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: usize,
    done: Vec<Done>,
    stop: bool,
}

impl Threads {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        count: usize,
        hook: Option<ThreadHook>,
    ) -> io::Result<Self> {
        let completion = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            backend,
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
            completion: Arc::new(completion),
        });
        let mut this = Self {
            shared,
            threads: Vec::new(),
        };
        for _ in 0..count.max(1) {
            let shared = Arc::clone(&this.shared);
            let hook = hook.clone();
            let run = move || match hook.map_or(Ok(()), |hook| hook()) {
                Ok(()) => shared.run(),
                Err(error) => {
                    tracing::error!(%error, "a disk thread could not be confined");
                    shared.refuse();
                }
            };
            this.threads.push(
                std::thread::Builder::new()
                    .name("disk-io".to_owned())
                    .spawn(run)?,
            );
        }
        Ok(this)
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                state.running += 1;
                drop(state);
                let result = perform(&*self.backend, &job.request, &job.ram, job.write_through);
                state = self.lock();
                state.running -= 1;
                self.complete(&mut state, (job.tag, result));
            } else if state.stop {
                return;
            } else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Fails every job, on a thread that must not touch any file.
    fn refuse(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                let refused = io::Error::from(io::ErrorKind::PermissionDenied);
                self.complete(&mut state, (job.tag, Err(refused)));
            } else if state.stop {
                return;
            } else {
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn complete(&self, state: &mut State, done: Done) {
        if state.done.is_empty() {
            signal(&self.completion);
        }
        state.done.push(done);
        if state.running == 0 && state.waiting.is_empty() {
            self.idle.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Threads {
    fn submit(&mut self, job: Job) {
        self.shared.lock().waiting.push_back(job);
        self.shared.work.notify_one();
    }

    fn start(&mut self) {}

    fn completion(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.shared.completion)
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        let mut state = self.shared.lock();
        drain(&self.shared.completion);
        done.append(&mut state.done);
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        let mut state = self.shared.lock();
        while state.running > 0 || !state.waiting.is_empty() {
            state = self
                .shared
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drain(&self.shared.completion);
        done.append(&mut state.done);
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has nothing more to do either.
            let _ = thread.join();
        }
    }
}
