use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{BackendKind, BackendReport, CommandLineError, VmExit};

/// The result of most of Capsa's operations.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where in its start a VM was when something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BootPhase {
    /// Choosing a backend and checking the settings.
    Check,
    /// Starting the process that runs the guest.
    Monitor,
    /// Setting up memory, devices and the kernel.
    Load,
    /// From the first guest instruction to init.
    Kernel,
    /// From init to an agent that answers.
    Agent,
}

impl fmt::Display for BootPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Check => "checking the settings",
            Self::Monitor => "starting the monitor",
            Self::Load => "loading the guest",
            Self::Kernel => "booting the kernel",
            Self::Agent => "waiting for the agent",
        })
    }
}

/// Why a network refused something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetworkErrorKind {
    /// A port of the host is in use by another program.
    PortInUse,
    /// This user must not use a port of the host.
    NotPermitted,
    /// A setting is wrong.
    Setting,
    /// There is no such network, guest or forward.
    NotFound,
    /// The network has guests.
    HasGuests,
    /// The network has ended.
    Ended,
    /// The operating system refused something.
    System,
}

/// What can go wrong. Every message names the thing and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting has a value that no backend could honour.
    #[error("{setting}: {value}: {reason}; {fix}")]
    InvalidSetting {
        /// The setting, by the name of its builder method.
        setting: String,
        /// The value that was given.
        value: String,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        fix: String,
    },
    /// The chosen backend cannot honour a setting.
    #[error("the {backend} backend cannot provide {setting}; {fix}")]
    Unsupported {
        /// The setting.
        setting: String,
        /// The backend.
        backend: BackendKind,
        /// What to do.
        fix: String,
    },
    /// The chosen backend cannot be used on this host.
    #[error("the {backend} backend cannot be used: {reason}; {fix}")]
    BackendUnavailable {
        /// The backend.
        backend: BackendKind,
        /// Why.
        reason: String,
        /// What to do.
        fix: String,
    },
    /// No backend can be used on this host.
    #[error("no backend can run this VM:{}", list(.0))]
    NoBackend(Vec<BackendReport>),
    /// A file or directory that a setting names cannot be used.
    #[error("{setting}: {}: {reason}; {fix}", path.display())]
    File {
        /// The setting, by the name of its builder method.
        setting: String,
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        fix: String,
    },
    /// The kernel command line cannot be used.
    #[error("cmdline: {0}")]
    CommandLine(#[from] CommandLineError),
    /// The start failed after it had begun; what had been started is gone again.
    #[error("{phase} failed: {reason}; {fix}{}", console_end(console))]
    Start {
        /// How far it came.
        phase: BootPhase,
        /// What happened.
        reason: String,
        /// What to do.
        fix: String,
        /// The end of the guest's console, where there was any.
        console: String,
    },
    /// The operation does not fit the state that the VM is in.
    #[error("cannot {operation}: the virtual machine {state}")]
    InvalidState {
        /// What was asked for, as a verb.
        operation: &'static str,
        /// What state the VM is in, as a predicate: `is not started`.
        state: String,
    },
    /// The VM ended before the operation could be carried out.
    #[error("the virtual machine has ended: {0}")]
    Ended(VmExit),
    /// The VM ended while something was waited for that now cannot come any more.
    #[error("{operation} did not happen: {exit}{}", console_end(console))]
    EndedEarly {
        /// What was waited for.
        operation: String,
        /// How the VM ended.
        exit: VmExit,
        /// The end of the guest's console.
        console: String,
    },
    /// A time that the caller set ran out.
    #[error("{operation} did not happen within {limit:?}{}", console_end(console))]
    Timeout {
        /// What was waited for.
        operation: String,
        /// The caller's limit.
        limit: Duration,
        /// The end of the guest's console, where it matters.
        console: String,
    },
    /// A network refused something, or is not there.
    #[error("network {network}: {reason}")]
    Network {
        /// The network's name.
        network: String,
        /// What kind of refusal it is.
        kind: NetworkErrorKind,
        /// What happened, and what to do.
        reason: String,
    },
    /// The console cannot be used.
    #[error("the console cannot be used: {reason}")]
    Console {
        /// Why.
        reason: String,
    },
    /// A reader of the console came so late that the log no longer keeps what it had not read.
    #[error(
        "{dropped} bytes of console output were dropped before they were read; read them earlier, \
         keep more with ConsoleConfig::log_capacity, or use a lossless reader"
    )]
    ConsoleLagged {
        /// How many bytes this reader has missed.
        dropped: u64,
    },
    /// The operating system refused something that it should not have.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// An [`Error::InvalidSetting`].
    pub fn invalid_setting(
        setting: impl Into<String>,
        value: impl fmt::Display,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::InvalidSetting {
            setting: setting.into(),
            value: value.to_string(),
            reason: reason.into(),
            fix: fix.into(),
        }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(
        setting: impl Into<String>,
        backend: BackendKind,
        fix: impl Into<String>,
    ) -> Self {
        Self::Unsupported {
            setting: setting.into(),
            backend,
            fix: fix.into(),
        }
    }

    /// An [`Error::BackendUnavailable`].
    pub fn unavailable(
        backend: BackendKind,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::BackendUnavailable {
            backend,
            reason: reason.into(),
            fix: fix.into(),
        }
    }

    /// An [`Error::File`].
    pub fn file(
        setting: impl Into<String>,
        path: impl AsRef<Path>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::File {
            setting: setting.into(),
            path: path.as_ref().to_owned(),
            reason: reason.into(),
            fix: fix.into(),
        }
    }

    /// An [`Error::Start`] without console output.
    pub fn start(phase: BootPhase, reason: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::Start {
            phase,
            reason: reason.into(),
            fix: fix.into(),
            console: String::new(),
        }
    }

    /// An [`Error::Io`].
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            context: context.into(),
            source,
        }
    }
}

fn list(reports: &[BackendReport]) -> String {
    if reports.is_empty() {
        return " this build of capsa has none; enable one of its backend features".to_owned();
    }
    let mut text = String::new();
    for BackendReport {
        backend,
        availability,
        ..
    } in reports
    {
        text.push_str(&format!("\n  {backend}: {}", availability.reason));
        if let Some(fix) = &availability.fix {
            text.push_str(&format!("; {fix}"));
        }
    }
    text
}

fn console_end(console: &str) -> String {
    let console = console.trim_end();
    if console.is_empty() {
        return String::new();
    }
    format!("\nThe end of the guest's console:\n{console}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Availability, BackendCapabilities};

    #[test]
    fn no_backend_names_each_one_with_its_fix() {
        let error = Error::NoBackend(vec![BackendReport {
            backend: BackendKind::Qemu,
            availability: Availability::absent("it is not installed", "apt-get install it"),
            capabilities: BackendCapabilities::default(),
        }]);
        assert!(
            error
                .to_string()
                .contains("qemu: it is not installed; apt-get install it")
        );
    }

    #[test]
    fn a_failed_start_shows_the_end_of_the_console() {
        let error = Error::Start {
            phase: BootPhase::Kernel,
            reason: "the guest's kernel panicked".into(),
            fix: "give it a root file system".into(),
            console: "VFS: Unable to mount root fs\n".into(),
        };
        let text = error.to_string();
        assert!(text.starts_with("booting the kernel failed: the guest's kernel panicked; give"));
        assert!(
            text.ends_with("console:\nVFS: Unable to mount root fs"),
            "{text}"
        );
    }
}
