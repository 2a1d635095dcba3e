//! Collecting ended processes, orphans included.

use capsa_agent_protocol::exec::ExitStatus;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::children;

/// What is left after all ended processes were collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Some processes still run.
    Some,
    /// None but init.
    None,
}

/// Collects every process that has ended, tells who waits for it, and calls `ended` with each.
pub(crate) fn collect(mut ended: impl FnMut(Pid)) -> Left {
    let mut left = Left::Some;
    children::collect(|| {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    ended(pid);
                    return Some((pid, exit_status(status)));
                }
                Err(Errno::INTR) => {}
                Ok(None) => return None,
                // CHILD: there is nobody to wait for.
                Err(_) => {
                    left = Left::None;
                    return None;
                }
            }
        }
    });
    left
}

fn exit_status(status: WaitStatus) -> ExitStatus {
    match (status.terminating_signal(), status.exit_status()) {
        (Some(number), _) => ExitStatus::Signal {
            number,
            core_dumped: libc::WCOREDUMP(status.as_raw()),
        },
        (None, code) => ExitStatus::Code(
            code.and_then(|code| u8::try_from(code & 0xff).ok())
                .unwrap_or(0),
        ),
    }
}
