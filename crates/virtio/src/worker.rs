//! A thread that turns a [`Reactor`] until it is told to stop.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::{DeviceError, Reactor, ReactorHandle};

/// An event-loop thread for any number of devices.
///
/// Dropping it resets the devices, stops the thread and joins it.
pub struct Worker {
    handle: ReactorHandle,
    control: Arc<Control>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Default)]
struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    wanted: Wanted,
    parked: bool,
    ended: bool,
    failed: Vec<DeviceError>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    #[default]
    Run,
    Pause,
    Stop,
}

impl Worker {
    /// Starts a thread called `name` (15 bytes are kept by the system).
    ///
    /// # Errors
    /// The host has no thread or descriptor left.
    pub fn spawn(name: &str) -> io::Result<Self> {
        Self::spawn_with(name, || Ok(()))
    }

    /// Like [`spawn`](Self::spawn); `prepare` runs on the new thread first (to install its seccomp filter).
    ///
    /// # Errors
    /// The host has no thread or descriptor left. What `prepare` says comes back from [`stop`](Self::stop).
    pub fn spawn_with(
        name: &str,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let reactor = Reactor::new()?;
        let handle = reactor.handle();
        let control = Arc::new(Control::default());
        let theirs = Arc::clone(&control);
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let ended = Ended(&theirs);
                prepare()?;
                run(reactor, ended.0)
            })?;
        Ok(Self {
            handle,
            control,
            thread: Some(thread),
        })
    }

    /// The loop, to add devices to.
    pub fn handle(&self) -> &ReactorHandle {
        &self.handle
    }

    /// Brings all devices to rest and parks the thread. Returns when both are done.
    ///
    /// Not to be called by a device on this loop.
    ///
    /// # Errors
    /// Devices that could not be paused; they have asked for a reset. The thread is parked all the same.
    pub fn pause(&self) -> Result<(), Vec<DeviceError>> {
        let mut state = self.control.lock();
        state.wanted = Wanted::Pause;
        self.handle.wake();
        while !state.parked && !state.ended {
            state = self.control.wait(state);
        }
        let failed = std::mem::take(&mut state.failed);
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed)
        }
    }

    /// Lets the thread and its devices go on; every queue is kicked and signalled once. Returns when the thread is awake.
    pub fn resume(&self) {
        let mut state = self.control.lock();
        if state.wanted != Wanted::Pause {
            return;
        }
        state.wanted = Wanted::Run;
        self.control.changed.notify_all();
        while state.parked && !state.ended {
            state = self.control.wait(state);
        }
    }

    /// Ends the thread and waits for it. All its devices are reset.
    ///
    /// # Errors
    /// What ended the loop before: `prepare`, or epoll.
    pub fn stop(mut self) -> io::Result<()> {
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        self.control.lock().wanted = Wanted::Stop;
        self.control.changed.notify_all();
        self.handle.wake();
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(io::Error::other("a device thread panicked")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Err(error) = self.join() {
            tracing::error!(%error, "a device thread ended badly");
        }
    }
}

fn run(mut reactor: Reactor, control: &Control) -> io::Result<()> {
    loop {
        if control.lock().wanted == Wanted::Pause {
            park(&reactor, control);
        }
        if control.lock().wanted == Wanted::Stop {
            return Ok(());
        }
        reactor.turn(None)?;
    }
}

fn park(reactor: &Reactor, control: &Control) {
    let failed = reactor
        .mounts()
        .iter()
        .filter_map(|mount| mount.pause().err())
        .collect();
    let mut state = control.lock();
    state.failed = failed;
    state.parked = true;
    control.changed.notify_all();
    while state.wanted == Wanted::Pause {
        state = control.wait(state);
    }
    state.parked = false;
    control.changed.notify_all();
    let go_on = state.wanted == Wanted::Run;
    drop(state);
    if go_on {
        reactor.mounts().iter().for_each(|mount| mount.resume());
    }
}

/// Says that the thread is gone, however it went, so that nobody waits for it.
struct Ended<'c>(&'c Control);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }
}
