//! What `capsa` exits with. `docs/cli.md` and the help of `capsa run` tell users the same.

use std::process::ExitCode;

use capsa::VmExit;

/// The table of `capsa run --help`.
pub(crate) const HELP: &str = "\
Exit status with a command: the command's own, and
  124  the time of --timeout was over
  125  capsa failed: a setting or a file is wrong, or the machine could not be started
  126  the command cannot be executed
  127  the command was not found
  128+n  ended by signal n

Exit status without one:
    0  the guest powered off
    2  the command line cannot be understood
   30  the guest asked for a reset
   31  the guest's kernel panicked
   32  the guest met a triple fault
   33  the virtual machine was killed
   34  the monitor failed
   35  left with Ctrl-]
  124  the time of --timeout was over
  125  capsa failed: a setting or a file is wrong, or the machine could not be started
  128+n  ended by signal n, such as 130 after Ctrl-C and 141 after the output was closed";

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    Success,
    Reset,
    GuestPanic,
    TripleFault,
    Killed,
    MonitorFailure,
    Left,
    TimedOut,
    Failed,
    Signal(u8),
    /// What a command in a guest ended with, as shells tell it.
    Command(u8),
}

impl ExitStatus {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Reset => 30,
            Self::GuestPanic => 31,
            Self::TripleFault => 32,
            Self::Killed => 33,
            Self::MonitorFailure => 34,
            Self::Left => 35,
            Self::TimedOut => 124,
            Self::Failed => 125,
            Self::Signal(number) => 128_u8.saturating_add(number),
            Self::Command(code) => code,
        }
    }
}

impl From<&VmExit> for ExitStatus {
    fn from(exit: &VmExit) -> Self {
        match exit {
            VmExit::PoweredOff => Self::Success,
            VmExit::Reset => Self::Reset,
            VmExit::GuestPanic(_) => Self::GuestPanic,
            VmExit::TripleFault => Self::TripleFault,
            VmExit::Killed => Self::Killed,
            VmExit::MonitorFailure(_) => Self::MonitorFailure,
            // A kind of end that this command does not know yet is no success.
            _ => Self::Failed,
        }
    }
}

impl From<capsa::ExitStatus> for ExitStatus {
    fn from(status: capsa::ExitStatus) -> Self {
        Self::Command(u8::try_from(status.shell_code()).unwrap_or(u8::MAX))
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        status.code().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_code_of_its_own_and_the_help_names_it() {
        let all = [
            ExitStatus::Success,
            ExitStatus::Reset,
            ExitStatus::GuestPanic,
            ExitStatus::TripleFault,
            ExitStatus::Killed,
            ExitStatus::MonitorFailure,
            ExitStatus::Left,
            ExitStatus::TimedOut,
            ExitStatus::Failed,
        ];
        for (index, status) in all.iter().enumerate() {
            let code = status.code();
            assert!(all[..index].iter().all(|other| other.code() != code));
            assert!(HELP.contains(&format!(" {code}  ")), "{code}");
        }
    }
}
