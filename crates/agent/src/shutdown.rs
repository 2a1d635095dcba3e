//! The commands `poweroff`, `halt` and `reboot`: the agent under these names.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use rustix::process::{Pid, Signal, kill_process};

use crate::power::{self, Ending};
use crate::report;

/// One of the commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    name: &'static str,
    ending: Ending,
    /// What process 1 is sent; see [`crate::events`].
    signal: Signal,
}

const COMMANDS: [Command; 3] = [
    Command {
        name: "poweroff",
        ending: Ending::PowerOff,
        signal: Signal::USR2,
    },
    // A halted virtual machine would run on without a purpose.
    Command {
        name: "halt",
        ending: Ending::PowerOff,
        signal: Signal::USR1,
    },
    Command {
        name: "reboot",
        ending: Ending::Restart,
        signal: Signal::TERM,
    },
];

/// What the arguments ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Options {
    /// Without asking init, so without ending processes first.
    force: bool,
    /// Without writing to the disks first.
    no_sync: bool,
}

impl Command {
    /// The command that a program of the name `program` is.
    pub(crate) fn named(program: &OsStr) -> Option<Self> {
        let name = Path::new(program).file_name()?;
        COMMANDS.into_iter().find(|command| name == command.name)
    }

    /// Carries it out with `arguments`.
    pub(crate) fn run(self, arguments: impl Iterator<Item = OsString>) -> ExitCode {
        let Some(options) = options(arguments) else {
            report::problem(format_args!(
                "usage: {} [-f] [-n]: -f at once, without ending processes first; -n without \
                 writing to the disks first",
                self.name
            ));
            return ExitCode::from(2);
        };
        if options.force {
            if !options.no_sync {
                rustix::fs::sync();
            }
            return power::end_machine(self.ending);
        }
        match kill_process(Pid::INIT, self.signal) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                report::problem(format_args!("{}: cannot tell init: {error}", self.name));
                ExitCode::FAILURE
            }
        }
    }
}

fn options(arguments: impl Iterator<Item = OsString>) -> Option<Options> {
    let mut options = Options::default();
    for argument in arguments {
        let letters = argument.to_str()?.strip_prefix('-')?;
        if letters.is_empty() {
            return None;
        }
        for letter in letters.chars() {
            match letter {
                'f' => options.force = true,
                'n' => options.no_sync = true,
                _ => return None,
            }
        }
    }
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Option<Options> {
        options(arguments.iter().map(OsString::from))
    }

    #[test]
    fn commands_are_known_by_the_last_part_of_their_path() {
        let command = Command::named(OsStr::new("/sbin/poweroff")).unwrap();

        assert_eq!(command.ending, Ending::PowerOff);
        assert_eq!(Command::named(OsStr::new("/init")), None);
    }

    #[test]
    fn letters_may_stand_together_or_alone() {
        let both = Options {
            force: true,
            no_sync: true,
        };

        assert_eq!(parsed(&["-fn"]), Some(both));
        assert_eq!(parsed(&["-f", "-n"]), Some(both));
    }

    #[test]
    fn unknown_arguments_are_refused() {
        for arguments in [["-x"], ["now"], ["-"], [""]] {
            assert_eq!(parsed(&arguments), None, "{arguments:?}");
        }
    }
}
