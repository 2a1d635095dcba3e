//! Taking away a process's own authority, before it touches what a guest controls.
//!
//! [`confine`] is called once, while the process has a single thread, and everything but the system
//! call filters is in force for all threads from then on. The filters are per thread: see
//! [`Policy`] and [`Filter`].
//!
//! No layer needs privileges, and each stands for itself: what the host lacks is named by
//! [`Missing`], and the others hold.

mod capabilities;
mod descriptors;
mod filter;
mod landlock;
mod limits;
pub mod lists;
mod namespaces;
mod policy;
mod refusal;
mod root;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

pub use filter::{Filter, FilterError};
pub use limits::raise_open_files;
pub use policy::{Policy, Rule, When, allow, allow_when, pretend_missing};

/// What a process keeps.
#[derive(Debug, Default)]
pub struct Confinement<'a> {
    /// The descriptors that stay open, besides standard input and outputs.
    pub descriptors: Vec<RawFd>,
    /// Directories in which files may be opened, and whether they may be changed.
    pub directories: Vec<(BorrowedFd<'a>, Access)>,
}

/// What may be done below a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing can be changed.
    Read,
    /// Everything can be changed.
    Write,
}

/// A layer of confinement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layer {
    /// No descriptors but those that were handed over.
    Descriptors,
    /// No new privileges by executing programs.
    NoNewPrivileges,
    /// User, mount, network, IPC, host name and cgroup namespaces of its own. Without them there is no
    /// empty root either.
    Namespaces,
    /// No file system but an empty one.
    EmptyRoot,
    /// Rules on files, sockets and signals by the kernel's Landlock.
    Landlock,
    /// No capabilities.
    Capabilities,
    /// Resource limits.
    Limits,
    /// Filters on system calls.
    SystemCalls,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Descriptors => "closing other descriptors",
            Self::NoNewPrivileges => "no new privileges",
            Self::Namespaces => "namespaces of its own",
            Self::EmptyRoot => "an empty root file system",
            Self::Landlock => "Landlock",
            Self::Capabilities => "dropping capabilities",
            Self::Limits => "resource limits",
            Self::SystemCalls => "system call filters",
        })
    }
}

/// A layer that this host does not provide.
#[derive(Debug, thiserror::Error)]
#[error("the process is not confined by {layer}: {reason}")]
pub struct Missing {
    /// Which.
    pub layer: Layer,
    /// Why.
    pub reason: String,
}

impl Missing {
    /// `layer` is not in force.
    pub fn new(layer: Layer, reason: impl fmt::Display) -> Self {
        Self {
            layer,
            reason: reason.to_string(),
        }
    }
}

/// Takes away everything but `kept` from this process, which has one thread. Returns what could not
/// be taken away.
///
/// A process of root that serves directories keeps root's rights on files, within them: without, it
/// could not serve other users' files. Any other ends up without any right at all.
pub fn confine(kept: &Confinement<'_>) -> Vec<Missing> {
    let mut missing = Vec::new();
    let mut layer = |layer, result: io::Result<()>| {
        let failed = result.is_err();
        missing.extend(result.err().map(|error| Missing::new(layer, error)));
        !failed
    };
    let files_of_root = !kept.directories.is_empty() && capabilities::has_rights_on_files();
    layer(
        Layer::Descriptors,
        descriptors::close_others(&kept.descriptors),
    );
    layer(
        Layer::NoNewPrivileges,
        rustix::thread::set_no_new_privs(true).map_err(Into::into),
    );
    if layer(Layer::Namespaces, namespaces::leave(!files_of_root)) {
        layer(Layer::EmptyRoot, root::replace());
    }
    layer(Layer::Landlock, landlock::restrict(&kept.directories));
    layer(Layer::Capabilities, capabilities::drop_all(files_of_root));
    layer(Layer::Limits, limits::lower());
    missing
}
