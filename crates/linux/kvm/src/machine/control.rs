//! The machine's phases, and how its vCPU threads are made to notice them.
//!
//! A vCPU thread is either in the guest, where only a signal reaches it, or outside, where it looks
//! at the phase before it enters again. A kick is a phase change followed by a signal whose handler
//! sets the `immediate_exit` flag of the thread's own vCPU: whichever side of the entry the signal
//! hits, `KVM_RUN` returns.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::end::MachineEnd;
use super::panic_watch::PanicWatch;

/// What vCPU threads are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Wait: built, or paused.
    Held = 0,
    /// Run the guest.
    Running = 1,
    /// Leave.
    Ended = 2,
}

impl Phase {
    fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Held,
            1 => Self::Running,
            _ => Self::Ended,
        }
    }
}

/// Shared by everything that can start, hold or end a machine.
#[derive(Debug)]
pub struct Control {
    phase: AtomicU8,
    state: Mutex<State>,
    changed: Condvar,
    ended: OwnedFd,
    panics: PanicWatch,
}

#[derive(Debug, Default)]
struct State {
    threads: Vec<libc::pthread_t>,
    parked: usize,
    end: Option<MachineEnd>,
    /// Woken when vCPUs are to leave whatever they wait for outside the guest.
    wakers: Wakers,
}

#[derive(Default)]
struct Wakers(Vec<Box<dyn Fn() + Send>>);

impl std::fmt::Debug for Wakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} wakers", self.0.len())
    }
}

impl Control {
    /// A machine that is held.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            phase: AtomicU8::new(Phase::Held as u8),
            state: Mutex::default(),
            changed: Condvar::new(),
            ended: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            panics: PanicWatch::default(),
        })
    }

    /// Where consoles show what they print.
    pub fn panics(&self) -> &PanicWatch {
        &self.panics
    }

    /// The present phase.
    pub fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::SeqCst))
    }

    /// Calls `waker` on every change of phase, so that a vCPU that waits outside the guest (for a
    /// console, say) looks at the phase again.
    pub fn on_change(&self, waker: impl Fn() + Send + 'static) {
        self.lock().wakers.0.push(Box::new(waker));
    }

    /// Lets vCPUs run. Nothing happens after the end.
    pub fn run(&self) {
        let state = self.lock();
        if self.phase() == Phase::Held {
            self.set_phase(&state, Phase::Running);
        }
    }

    /// Holds all vCPUs and returns when each has left the guest (or the machine has ended).
    pub fn hold(&self) {
        let mut state = self.lock();
        if self.phase() == Phase::Ended {
            return;
        }
        self.set_phase(&state, Phase::Held);
        while state.parked < state.threads.len() && self.phase() == Phase::Held {
            state = self.wait(state);
        }
    }

    /// Ends the machine; the first end counts. An end that a guest's panic leads to is reported as
    /// the panic.
    pub fn end(&self, end: MachineEnd) {
        let end = match (end, self.panics.message()) {
            (MachineEnd::Reset | MachineEnd::TripleFault, Some(message))
            | (MachineEnd::GuestPanic { message: None }, Some(message)) => MachineEnd::GuestPanic {
                message: Some(message),
            },
            (end, _) => end,
        };
        let mut state = self.lock();
        if state.end.is_none() && self.phase() != Phase::Ended {
            state.end = Some(end);
        }
        self.finish(&state);
    }

    /// Makes every vCPU thread leave, without an end of the guest's own.
    pub fn stop(&self) {
        let state = self.lock();
        self.finish(&state);
    }

    fn finish(&self, state: &MutexGuard<'_, State>) {
        self.set_phase(state, Phase::Ended);
        // It fails only when the counter is full, and then it is readable as it should be.
        let _ = rustix::io::write(&self.ended, &1u64.to_ne_bytes());
    }

    /// Readable from the end on.
    pub fn end_event(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    /// How the guest ended, once it has; `None` before, and after a mere [`stop`](Self::stop).
    pub fn end_reason(&self) -> Option<MachineEnd> {
        self.lock().end.clone()
    }

    fn set_phase(&self, state: &MutexGuard<'_, State>, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
        self.changed.notify_all();
        for waker in &state.wakers.0 {
            waker();
        }
        for thread in &state.threads {
            // SAFETY: a thread takes itself off the list, under this lock, before it ends, so the
            // handle is that of a live thread. The signal's handler was installed before it got on.
            unsafe { libc::pthread_kill(*thread, kick_signal()) };
        }
    }

    /// Waits until the machine runs or ends, counting as parked meanwhile.
    pub fn park(&self) {
        let mut state = self.lock();
        state.parked += 1;
        self.changed.notify_all();
        while self.phase() == Phase::Held {
            state = self.wait(state);
        }
        state.parked -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread runs. Constant initialiser and no
    /// destructor, so that a signal handler may read it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// Puts the calling thread among those that are kicked, for as long as it lives.
pub struct VcpuThread<'a> {
    control: &'a Control,
}

impl<'a> VcpuThread<'a> {
    /// # Safety
    /// `immediate_exit` must be the flag in the `kvm_run` structure of the vCPU that only this
    /// thread runs, and stay mapped until the value is dropped.
    ///
    /// # Errors
    /// The signal cannot be set up.
    pub unsafe fn enter(control: &'a Control, immediate_exit: *mut u8) -> io::Result<Self> {
        install_kick_handler()?;
        IMMEDIATE_EXIT.set(immediate_exit);
        // SAFETY: the set is initialised by sigemptyset; unblocking a signal that has a handler
        // harms nobody. pthread_self has no preconditions.
        let thread = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, kick_signal());
            match libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) {
                0 => libc::pthread_self(),
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        };
        control.lock().threads.push(thread);
        Ok(Self { control })
    }
}

impl Drop for VcpuThread<'_> {
    fn drop(&mut self) {
        // SAFETY: pthread_self has no preconditions.
        let this = unsafe { libc::pthread_self() };
        self.control.lock().threads.retain(|t| *t != this);
        self.control.changed.notify_all();
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

/// A real-time signal few programs use; the first few belong to the C library and to tools.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

extern "C" fn on_kick(_: libc::c_int) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: a non-null pointer is the flag of the vCPU this thread runs (see
        // `VcpuThread::enter`). The kernel reads it concurrently, hence volatile.
        unsafe { flag.write_volatile(1) };
    }
}

/// Installs the kick's handler, once in a process.
fn install_kick_handler() -> io::Result<()> {
    static ERRNO: OnceLock<i32> = OnceLock::new();
    let errno = *ERRNO.get_or_init(|| {
        // SAFETY: the structure is plain data for which zero is valid; the handler does nothing but
        // a store through a thread-local pointer. Without SA_RESTART, KVM_RUN returns EINTR.
        let installed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_kick as *const () as libc::sighandler_t;
            libc::sigemptyset(&mut action.sa_mask);
            libc::sigaction(kick_signal(), &action, std::ptr::null_mut())
        };
        match installed {
            0 => 0,
            _ => io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        }
    });
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn readable(fd: BorrowedFd<'_>) -> bool {
        rustix::io::read(fd, &mut [0u8; 8]).is_ok()
    }

    #[test]
    fn first_end_counts() {
        let control = Control::new().unwrap();

        control.end(MachineEnd::PoweredOff);
        control.end(MachineEnd::Reset);

        assert_eq!(control.end_reason(), Some(MachineEnd::PoweredOff));
        assert_eq!(control.phase(), Phase::Ended);
        assert!(readable(control.end_event()));
    }

    #[test]
    fn reset_after_a_panic_line_is_the_panic() {
        let control = Control::new().unwrap();
        control
            .panics()
            .stream()
            .feed(b"Kernel panic - not syncing: oh\n");

        control.end(MachineEnd::Reset);

        assert_eq!(
            control.end_reason(),
            Some(MachineEnd::GuestPanic {
                message: Some("oh".into())
            })
        );
    }

    #[test]
    fn power_off_after_a_panic_line_stays_a_power_off() {
        let control = Control::new().unwrap();
        control
            .panics()
            .stream()
            .feed(b"Kernel panic - not syncing: oh\n");

        control.end(MachineEnd::PoweredOff);

        assert_eq!(control.end_reason(), Some(MachineEnd::PoweredOff));
    }

    #[test]
    fn stop_is_no_end_of_the_guest() {
        let control = Control::new().unwrap();

        control.stop();
        control.end(MachineEnd::Reset);

        assert_eq!(control.end_reason(), None);
        assert!(readable(control.end_event()));
    }

    #[test]
    fn run_after_the_end_does_not_revive() {
        let control = Control::new().unwrap();
        control.stop();

        control.run();

        assert_eq!(control.phase(), Phase::Ended);
    }

    #[test]
    fn hold_returns_when_every_thread_is_parked() {
        let control = Arc::new(Control::new().unwrap());
        let turns = Arc::new(AtomicUsize::new(0));
        control.run();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (control, turns) = (Arc::clone(&control), Arc::clone(&turns));
                std::thread::spawn(move || {
                    let mut flag = 0u8;
                    // SAFETY: the flag outlives the guard and belongs to this thread.
                    let _thread = unsafe { VcpuThread::enter(&control, &mut flag) }.unwrap();
                    loop {
                        match control.phase() {
                            Phase::Running => {
                                turns.fetch_add(1, Ordering::SeqCst);
                                std::thread::yield_now();
                            }
                            Phase::Held => control.park(),
                            Phase::Ended => return,
                        }
                    }
                })
            })
            .collect();

        control.hold();
        let held = turns.load(Ordering::SeqCst);
        std::thread::yield_now();
        let still = turns.load(Ordering::SeqCst);
        control.run();
        while turns.load(Ordering::SeqCst) == still {
            std::thread::yield_now();
        }
        control.stop();
        for thread in threads {
            thread.join().unwrap();
        }

        assert_eq!(held, still);
    }

    #[test]
    fn kick_sets_the_flag_of_the_thread_it_reaches() {
        let control = Arc::new(Control::new().unwrap());
        let theirs = Arc::clone(&control);
        control.run();
        let thread = std::thread::spawn(move || {
            let mut flag = 0u8;
            let pointer = &raw mut flag;
            // SAFETY: the flag outlives the guard and belongs to this thread.
            let _thread = unsafe { VcpuThread::enter(&theirs, pointer) }.unwrap();
            // SAFETY: the flag is alive; the handler writes it on this very thread.
            while unsafe { pointer.read_volatile() } == 0 {
                std::thread::yield_now();
            }
        });
        while control.lock().threads.is_empty() {
            std::thread::yield_now();
        }

        control.stop();

        thread.join().unwrap();
    }
}
