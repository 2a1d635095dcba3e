//! Running a command.
//!
//! Each stream has a *window*: the number of bytes that its sender may send before the receiver,
//! having passed them on, gives it more. So a stream that nobody reads holds up only itself: signals,
//! the other streams and the command's end always come through. All windows begin with
//! [`WINDOW_BYTES`].
//!
//! The agent sends standard output as [`Data`](crate::frame::Kind::Data) and standard error as
//! [`ErrorData`](crate::frame::Kind::ErrorData); the host sends standard input as `Data` and its end
//! as [`End`](crate::frame::Kind::End). The exec is over once [`ExecEvent::Exited`] and an
//! [`ExecEvent::OutputEnd`] of both streams came. A connection that the host closes before the
//! command has ended ends the command, unless it is [`detached`](ExecRequest::detached).

use serde::{Deserialize, Serialize};

use crate::ByteString;

/// How many bytes of each stream may be under way at first.
pub const WINDOW_BYTES: u32 = 256 << 10;

/// The command.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// The program and its arguments, at least one. A program without a slash is looked for in the
    /// command's `PATH`.
    pub arguments: Vec<ByteString>,
    /// Environment variables: names, and values; without one, the variable is removed. They come on
    /// top of those of the boot message and of `PATH`, `HOME`, `USER` and `LOGNAME`.
    pub environment: Vec<(ByteString, Option<ByteString>)>,
    /// Whether the command gets nothing but `environment`.
    pub clear_environment: bool,
    /// The directory it starts in; without one, the user's home where that is there, else `/`.
    pub directory: Option<ByteString>,
    /// `USER`, `UID`, `USER:GROUP` or `UID:GID`, by name or number; without one, `root`.
    pub user: Option<String>,
    /// Whether the host sends standard input; else it is empty.
    pub stdin: bool,
    /// Whether a terminal is the command's standard input, output and error.
    pub terminal: Option<Terminal>,
    /// Whether the command goes on when the connection ends early.
    pub detached: bool,
}

/// A terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its height in rows.
    pub rows: u16,
    /// Its width in columns.
    pub columns: u16,
}

/// What the host sends while the command runs, beside standard input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecControl {
    /// Send this signal to the command's process group.
    Signal(i32),
    /// The terminal has a new size.
    Resize(Terminal),
    /// So many bytes more may be sent.
    Credit(OutputStream, u32),
}

/// What the agent sends while the command runs, beside its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecEvent {
    /// So many bytes more of standard input may be sent.
    StdinCredit(u32),
    /// The command has closed its standard input: more is thrown away.
    StdinClosed,
    /// Nothing more comes of this stream.
    OutputEnd(OutputStream),
    /// The command itself has ended. What it had written before still comes.
    Exited(ExitStatus),
}

/// A stream that the command writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OutputStream {
    /// Standard output, or what comes from the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It ended by itself, with this status.
    Code(u8),
    /// A signal ended it.
    Signal {
        /// The signal's number on Linux.
        number: i32,
        /// Whether a memory image was written.
        core_dumped: bool,
    },
}

impl ExitStatus {
    /// Whether the command ended by itself with status 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The command's own status; `None` where a signal ended it.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(code.into()),
            Self::Signal { .. } => None,
        }
    }

    /// The signal that ended it.
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Code(_) => None,
            Self::Signal { number, .. } => Some(number),
        }
    }

    /// As shells report it: 128 and the number for a signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code.into(),
            Self::Signal { number, .. } => 128 + number,
        }
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal {
                number,
                core_dumped,
            } => {
                write!(f, "signal {number}")?;
                f.write_str(if *core_dumped { " (core dumped)" } else { "" })
            }
        }
    }
}
