use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::boot::{BootConfig, BootReport};
use crate::exec::ExecRequest;
use crate::files::{Entry, FileRequest, Metadata};
use crate::tree_summary::TreeSummary;
use crate::{ByteString, Failure};

/// What the host asks for: the first message of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Whether the agent answers, and what it is: [`Reply::Info`].
    Info,
    /// Run a command.
    Exec(Box<ExecRequest>),
    /// Do something with the guest's files.
    File(FileRequest),
    /// Set the guest up, once: [`Reply::Booted`].
    Boot(Box<BootConfig>),
    /// Set the guest's clock.
    SetClock(Timestamp),
    /// End the machine: it is answered before that happens.
    End(Ending),
    /// Whether a program in the guest listens on this TCP port now: [`Reply::Probed`].
    Probe {
        /// The port.
        port: u16,
    },
    /// Connect to this TCP port of the guest's loopback interface.
    Connect {
        /// The port.
        port: u16,
    },
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It was done; where data follows, it begins.
    Done,
    /// It was not.
    Failed(Failure),
    /// What the agent is.
    Info(AgentInfo),
    /// The command runs.
    Started {
        /// Its process in the guest.
        pid: u32,
    },
    /// The guest is set up.
    Booted(BootReport),
    /// What a file is.
    Metadata(Metadata),
    /// Some entries of a directory.
    Entries(Vec<Entry>),
    /// A path: where a symbolic link points to, say.
    Path(ByteString),
    /// What was copied.
    Copied(TreeSummary),
    /// Whether somebody listens.
    Probed(bool),
}

/// What the agent is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// The version of its package.
    pub version: String,
    /// Whether it is the guest's first process.
    pub is_init: bool,
    /// Whether the boot message has been carried out.
    pub booted: bool,
}

/// How the machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// Processes are asked to end, file systems written, and the machine is powered off.
    PowerOff,
    /// The same, and the machine is restarted.
    Restart,
}

/// A point in time: seconds and nanoseconds since 1970, without leap seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The host's time now.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self {
                seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                nanoseconds: after.subsec_nanos(),
            },
            Err(error) => {
                let before = error.duration();
                let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self {
                        seconds: -seconds,
                        nanoseconds: 0,
                    },
                    part => Self {
                        seconds: (-seconds).saturating_sub(1),
                        nanoseconds: 1_000_000_000 - part,
                    },
                }
            }
        }
    }
}

impl Timestamp {
    /// As the standard library's time; `None` beyond what that can hold.
    pub fn to_system_time(self) -> Option<SystemTime> {
        let part = Duration::from_nanos(self.nanoseconds.into());
        let whole = Duration::from_secs(self.seconds.unsigned_abs());
        if self.seconds >= 0 {
            SystemTime::UNIX_EPOCH.checked_add(whole)?.checked_add(part)
        } else {
            SystemTime::UNIX_EPOCH.checked_sub(whole)?.checked_add(part)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970_survive_the_way() {
        for offset in [0, 1, 1_500_000_000_123_456_789] {
            let offset = Duration::from_nanos(offset);
            for time in [
                SystemTime::UNIX_EPOCH + offset,
                SystemTime::UNIX_EPOCH - offset,
            ] {
                assert_eq!(Timestamp::from(time).to_system_time(), Some(time));
            }
        }
    }
}
