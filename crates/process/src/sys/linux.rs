//! Linux (5.4 or newer): a child is a pidfd. It cannot mean another process later, and it becomes
//! readable when the child ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::ExitReason;

/// A child that may have ended.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// Takes hold of a child that was not waited for yet.
    pub(crate) fn of_child(pid: Pid) -> io::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends `signal`, unless the child has been reaped.
    pub(crate) fn signal(&self, signal: Signal) {
        // It fails only for a child that is gone, which is what a killer wants.
        let _gone = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Reaps the child if it has ended.
    pub(crate) fn try_reap(&self) -> Option<ExitReason> {
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    /// Waits for the end of the child on this thread, and reaps it.
    pub(crate) fn reap_blocking(&self) {
        self.reap(WaitIdOptions::EXITED);
    }

    fn reap(&self, options: WaitIdOptions) -> Option<ExitReason> {
        loop {
            return match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(None) => None,
                Ok(Some(status)) => Some(if let Some(status) = status.exit_status() {
                    ExitReason::Status(status)
                } else if let Some(signal) = status.terminating_signal() {
                    ExitReason::Signal(signal)
                } else {
                    ExitReason::Unknown
                }),
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => Some(ExitReason::Unknown),
            };
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The pidfd as the runtime's epoll wants it.
#[derive(Debug)]
struct Pidfd(Arc<Process>);

impl std::os::fd::AsRawFd for Pidfd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsRawFd::as_raw_fd(&self.0.pidfd)
    }
}

/// Waits for the end of a child without a thread.
#[derive(Debug)]
pub(crate) struct ExitWatch(AsyncFd<Pidfd>);

impl ExitWatch {
    pub(crate) fn new(process: Arc<Process>) -> io::Result<Self> {
        // SAFETY: the pidfd is a field that is never replaced, in an allocation that `Pidfd` keeps.
        let watch = unsafe { AsyncFd::register_with_interest(Pidfd(process), Interest::READABLE) };
        Ok(Self(watch?))
    }

    /// Waits until the child has ended. It stays to be reaped.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }
}
