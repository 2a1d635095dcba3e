use std::fmt;

use serde::{Deserialize, Serialize};

/// Why the agent could not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind of failure.
    pub kind: FailureKind,
    /// The guest's error number (errno), 0 where there is none.
    pub errno: i32,
    /// What failed, for people: a step or a path.
    pub context: String,
}

/// Which kind of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureKind {
    /// The operating system refused; `errno` says why.
    System,
    /// There is no such program: what shells report as 127.
    CommandNotFound,
    /// The program is there and cannot be executed: what shells report as 126.
    NotExecutable,
    /// Arguments and environment are longer than the guest's kernel takes.
    ArgumentsTooLong,
    /// The guest has no such user or group.
    UnknownUser,
    /// The working directory cannot be entered.
    WorkingDirectory,
    /// The request makes no sense.
    Invalid,
    /// The agent does as much as it can already.
    Busy,
    /// What came over the connection cannot be read.
    Protocol,
}

impl Failure {
    /// A failure of the kind, without an error number.
    pub fn new(kind: FailureKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            errno: 0,
            context: context.into(),
        }
    }

    /// The operating system's error, of the kind.
    pub fn of(kind: FailureKind, error: &std::io::Error, context: impl Into<String>) -> Self {
        Self {
            kind,
            errno: error.raw_os_error().unwrap_or(0),
            context: match error.raw_os_error() {
                Some(_) => context.into(),
                None => format!("{}: {error}", context.into()),
            },
        }
    }

    /// The operating system's error.
    pub fn system(error: &std::io::Error, context: impl Into<String>) -> Self {
        Self::of(FailureKind::System, error, context)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match self.errno {
            0 => Ok(()),
            number => write!(f, ": {}", std::io::Error::from_raw_os_error(number)),
        }
    }
}

impl std::error::Error for Failure {}
