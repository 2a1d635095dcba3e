//! Arguments that several commands have.

use std::ffi::OsString;

use capsa::{Command, CommandInput};
use clap::Args;

use super::stdio::{Streams, terminal_size};
use crate::terminal;

/// How a command runs in a sandbox.
#[derive(Args, Debug, Default)]
pub(crate) struct CommandArguments {
    /// Pass standard input on to the command
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set an environment variable; without a value, to that of this environment
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, Option<String>)>,
    /// The directory in which the command starts [default: the user's home]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// The user: USER, UID, USER:GROUP or UID:GID of the sandbox [default: root]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
}

fn parse_variable(text: &str) -> Result<(String, Option<String>), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, std::env::var(text).ok()),
    };
    if name.is_empty() {
        return Err("write NAME=VALUE, or NAME".to_owned());
    }
    Ok((name.to_owned(), value))
}

impl CommandArguments {
    pub(crate) fn streams(&self) -> Streams {
        Streams {
            interactive: self.interactive,
            terminal: self.tty,
        }
    }

    /// `words` as a command, with all that is asked for here. There is at least one word.
    pub(crate) fn command(&self, words: &[OsString]) -> Command {
        let (program, arguments) = match words.split_first() {
            Some((program, arguments)) => (program.clone(), arguments),
            None => (OsString::from("/bin/sh"), &[][..]),
        };
        let mut command = Command::new(program).arguments(arguments.iter().cloned());
        if self.tty {
            command = command.terminal(terminal_size());
            if let Some(kind) = terminal::kind() {
                command = command.environment("TERM", kind);
            }
        } else if self.interactive {
            command = command.stdin(CommandInput::Piped);
        }
        for (name, value) in &self.env {
            if let Some(value) = value {
                command = command.environment(name, value);
            }
        }
        if let Some(directory) = &self.workdir {
            command = command.directory(directory);
        }
        if let Some(user) = &self.user {
            command = command.user(user);
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_parted_at_the_first_equals_sign() {
        assert_eq!(
            parse_variable("A=b=c"),
            Ok(("A".to_owned(), Some("b=c".to_owned())))
        );
        assert_eq!(
            parse_variable("A="),
            Ok(("A".to_owned(), Some(String::new())))
        );
        assert_eq!(
            parse_variable("CAPSA_NO_SUCH"),
            Ok(("CAPSA_NO_SUCH".to_owned(), None))
        );
        assert!(parse_variable("=b").is_err());
    }
}
