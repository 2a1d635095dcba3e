use std::ffi::OsString;

use capsa_agent_protocol::ByteString;
use capsa_agent_protocol::exec::{ExecRequest, Terminal};
use serde::{Deserialize, Serialize};

/// A command that a guest is to run. No shell is in between: arguments arrive as they are.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[must_use = "nothing runs before the command is given to a client"]
pub struct Command {
    pub(crate) request: ExecRequest,
}

/// What a command reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CommandInput {
    /// Nothing.
    #[default]
    Empty,
    /// What is written to [`Child::stdin`](crate::Child).
    Piped,
}

impl Command {
    /// A command without arguments. A program without a slash is looked for in the guest's `PATH`.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            request: ExecRequest {
                arguments: vec![program.into().into()],
                ..ExecRequest::default()
            },
        }
    }

    /// Adds an argument.
    pub fn argument(mut self, argument: impl Into<OsString>) -> Self {
        self.request.arguments.push(argument.into().into());
        self
    }

    /// Adds arguments.
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.request
            .arguments
            .extend(arguments.into_iter().map(|one| one.into().into()));
        self
    }

    /// Sets an environment variable.
    pub fn environment(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.request
            .environment
            .push((name.into().into(), Some(value.into().into())));
        self
    }

    /// Removes an environment variable that the guest gives to every command.
    pub fn without_environment(mut self, name: impl Into<OsString>) -> Self {
        self.request.environment.push((name.into().into(), None));
        self
    }

    /// Gives the command only what [`environment`](Self::environment) says.
    pub fn clear_environment(mut self) -> Self {
        self.request.clear_environment = true;
        self
    }

    /// Sets the directory in which it starts [default: the user's home].
    pub fn directory(mut self, path: impl Into<OsString>) -> Self {
        self.request.directory = Some(path.into().into());
        self
    }

    /// Sets the user: `USER`, `UID`, `USER:GROUP` or `UID:GID` of the guest [default: root].
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.request.user = Some(user.into());
        self
    }

    /// Sets what it reads [default: nothing; a terminal's command always reads the terminal].
    pub fn stdin(mut self, input: CommandInput) -> Self {
        self.request.stdin = input == CommandInput::Piped;
        self
    }

    /// Gives it a terminal of this size, which is its standard input, output and error.
    pub fn terminal(mut self, size: Terminal) -> Self {
        self.request.terminal = Some(size);
        self.request.stdin = true;
        self
    }

    /// Lets it go on when the [`Child`](crate::Child) is dropped or the connection breaks.
    pub fn detached(mut self) -> Self {
        self.request.detached = true;
        self
    }

    /// Sets the directory in which it starts, where none is set yet.
    pub fn default_directory(mut self, path: impl Into<OsString>) -> Self {
        let directory = &mut self.request.directory;
        directory.get_or_insert_with(|| path.into().into());
        self
    }

    /// Sets the user, where none is set yet.
    pub fn default_user(mut self, user: impl Into<String>) -> Self {
        self.request.user.get_or_insert_with(|| user.into());
        self
    }

    /// The program and its arguments, for messages.
    pub fn words(&self) -> Vec<String> {
        let arguments = self.request.arguments.iter();
        arguments.map(|word| word.display().to_string()).collect()
    }

    /// The program, for messages.
    pub fn program(&self) -> String {
        self.request
            .arguments
            .first()
            .map(|program| program.display().to_string())
            .unwrap_or_default()
    }

    /// Bytes of arguments and environment.
    pub(crate) fn length(&self) -> usize {
        let arguments = self.request.arguments.iter().map(|one| one.0.len() + 1);
        let environment = self.request.environment.iter().map(|(name, value)| {
            name.0.len() + value.as_ref().map_or(0, |value: &ByteString| value.0.len()) + 2
        });
        arguments.chain(environment).sum()
    }
}
