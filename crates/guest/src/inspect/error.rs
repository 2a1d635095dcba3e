use std::io;
use std::path::{Path, PathBuf};

use crate::Arch;

/// Why a file cannot be booted as a kernel.
#[derive(Debug, thiserror::Error)]
#[error("{}: {kind}; {}", path.display(), kind.fix())]
pub struct InspectError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub kind: InspectErrorKind,
}

impl From<InspectError> for capsa_core::Error {
    fn from(error: InspectError) -> Self {
        Self::file(
            "kernel",
            &error.path,
            error.kind.to_string(),
            error.kind.fix(),
        )
    }
}

/// What is wrong with a kernel file. The message says what the file is; [`fix`](Self::fix) what to
/// do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectErrorKind {
    /// There is no such file.
    #[error("there is no such file")]
    Missing,
    /// The operating system does not let us read it.
    #[error("it cannot be read: {0}")]
    Unreadable(#[source] io::Error),
    /// It is a directory, a socket, a device: anything but a regular file.
    #[error("it is {0}, not a file")]
    NotAFile(&'static str),
    /// It has no content.
    #[error("it is empty")]
    Empty,
    /// It is a file of another kind.
    #[error("it is {what}, not a kernel")]
    NotAKernel {
        /// What it is.
        what: &'static str,
        /// What to do.
        fix: &'static str,
    },
    /// It is a kernel, and ends too early.
    #[error(
        "it is a truncated {what}: its headers tell of {expected} bytes, and it has only {actual}"
    )]
    Truncated {
        /// The format.
        what: &'static str,
        /// Length in bytes that its headers tell of.
        expected: u64,
        /// Its length in bytes.
        actual: u64,
    },
    /// Its headers contradict themselves.
    #[error("it is a corrupt {what}: {reason}")]
    Corrupt {
        /// The format.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// It is a sound kernel of a kind that cannot be booted directly.
    #[error("it is {what}")]
    Unsupported {
        /// What it is.
        what: String,
        /// What to do.
        fix: &'static str,
    },
    /// It is a kernel for other processors.
    #[error("it is a kernel for {found}, and this machine's guests are {needed}")]
    WrongArch {
        /// The architecture that the kernel is for.
        found: String,
        /// The architecture that it has to be for.
        needed: Arch,
    },
}

impl InspectErrorKind {
    /// What the user can do.
    pub fn fix(&self) -> String {
        match self {
            Self::Missing => "check the path".to_owned(),
            Self::Unreadable(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                "make it readable for you, for example with `chmod a+r`, or use a copy".to_owned()
            }
            Self::Unreadable(_) => "check the file and the disk it lies on".to_owned(),
            Self::NotAFile(_) => "give the path of a kernel file".to_owned(),
            Self::Empty | Self::Truncated { .. } | Self::Corrupt { .. } => {
                "copy or build it again".to_owned()
            }
            Self::NotAKernel { fix, .. } | Self::Unsupported { fix, .. } => (*fix).to_owned(),
            Self::WrongArch { needed, .. } => format!("give a kernel built for {needed}"),
        }
    }

    pub(super) fn at(self, path: &Path) -> InspectError {
        InspectError {
            path: path.to_owned(),
            kind: self,
        }
    }

    pub(super) fn corrupt(what: &'static str, reason: impl Into<String>) -> Self {
        Self::Corrupt {
            what,
            reason: reason.into(),
        }
    }
}
