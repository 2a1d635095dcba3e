//! Unix without pidfds: a child is its number, which stays its own until it is reaped, and
//! `SIGCHLD` tells that some child has ended.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::signal::unix::{SignalKind, signal};

use crate::ExitReason;

/// A child that may have ended.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    /// How it ended; from then on its number may mean another process.
    reaped: Mutex<Option<ExitReason>>,
}

impl Process {
    /// Takes hold of a child that was not waited for yet.
    pub(crate) fn of_child(pid: Pid) -> io::Result<Self> {
        let reaped = Mutex::new(None);
        Ok(Self { pid, reaped })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends `signal`, unless the child has been reaped.
    pub(crate) fn signal(&self, signal: Signal) {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        if reaped.is_none() {
            // It fails only for a child that has ended, which is what a killer wants.
            let _gone = kill_process(self.pid, signal);
        }
    }

    /// Reaps the child if it has ended.
    pub(crate) fn try_reap(&self) -> Option<ExitReason> {
        self.reap(WaitOptions::NOHANG)
    }

    /// Waits for the end of the child on this thread, and reaps it.
    pub(crate) fn reap_blocking(&self) {
        self.reap(WaitOptions::empty());
    }

    fn reap(&self, options: WaitOptions) -> Option<ExitReason> {
        let mut reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        while reaped.is_none() {
            match waitpid(Some(self.pid), options) {
                Ok(None) => break,
                Ok(Some((_, status))) => {
                    *reaped = Some(if let Some(status) = status.exit_status() {
                        ExitReason::Status(status)
                    } else if let Some(signal) = status.terminating_signal() {
                        ExitReason::Signal(signal)
                    } else {
                        ExitReason::Unknown
                    });
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => *reaped = Some(ExitReason::Unknown),
            }
        }
        *reaped
    }
}

/// Waits for the end of a child without a thread.
#[derive(Debug)]
pub(crate) struct ExitWatch {
    process: Arc<Process>,
    child_signals: tokio::sync::Mutex<tokio::signal::unix::Signal>,
}

impl ExitWatch {
    pub(crate) fn new(process: Arc<Process>) -> io::Result<Self> {
        let child_signals = tokio::sync::Mutex::new(signal(SignalKind::child())?);
        Ok(Self {
            process,
            child_signals,
        })
    }

    /// Waits until the child has ended.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        let mut child_signals = self.child_signals.lock().await;
        while self.process.try_reap().is_none() {
            child_signals.recv().await;
        }
        Ok(())
    }
}
