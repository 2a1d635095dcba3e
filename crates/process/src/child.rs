use std::io;
use std::sync::Arc;

use rustix::process::Signal;

use crate::ExitReason;
use crate::reaper;
use crate::sys::{ExitWatch, Process};

/// A child process that was started and not yet reaped. Dropping it kills and reaps it, without
/// blocking.
#[derive(Debug)]
pub struct Child {
    process: Arc<Process>,
    reaped: bool,
}

impl Child {
    pub(crate) fn new(process: Process) -> Self {
        Self {
            process: Arc::new(process),
            reaped: false,
        }
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.process.pid().as_raw_pid().unsigned_abs()
    }

    pub(crate) fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// Lets it live for as long as it likes, also when the caller ends. It is reaped when it has
    /// ended, for as long as the caller's runtime runs. Must be called in a runtime with I/O enabled.
    ///
    /// # Errors
    /// Where the runtime cannot watch it; it is then ended.
    pub fn let_go(mut self) -> io::Result<()> {
        let watch = ExitWatch::new(self.process.clone())?;
        self.reaped = true;
        tokio::spawn(async move {
            if watch.ended().await.is_ok() {
                self.process.try_reap();
            }
        });
        Ok(())
    }

    /// Reaps it if it has ended.
    pub(crate) fn try_reap(&mut self) -> Option<ExitReason> {
        let end = self.process.try_reap();
        self.reaped |= end.is_some();
        end
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        self.process.signal(Signal::KILL);
        if self.process.try_reap().is_none() {
            reaper::reap_later(self.process.clone());
        }
    }
}
