use std::io;
use std::path::{Path, PathBuf};

use crate::Arch;
use crate::inspect::InspectError;
use crate::store::StoreError;

/// Why no kernel was built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Guests cannot have this host's architecture.
    #[error("guests cannot have this machine's architecture; give --arch x86_64 or aarch64")]
    UnknownHost,
    /// There is no place for the user's cache.
    #[error("there is no cache directory: set HOME or XDG_CACHE_HOME to an absolute path")]
    NoCacheDirectory,
    /// Programs or sources are missing, and it is not for us to install them.
    #[error("building a kernel needs more than is installed; type:\n  {command}")]
    PackagesMissing {
        /// The line to type.
        command: String,
    },
    /// No package with Linux sources that are new enough is there.
    #[error(
        "Debian's package with the Linux sources ({} or newer) is not installed; run `apt-get \
         update` and install it, or give a source tree with --source DIR",
        super::source::oldest_package()
    )]
    NoSourcePackage,
    /// The host has no compiler for this architecture.
    #[error(
        "there is no compiler for {arch} ({compiler}); apt-get install {package}, or build on a \
         machine of that architecture"
    )]
    NoCompiler {
        /// The architecture.
        arch: Arch,
        /// The program that is missing.
        compiler: String,
        /// The package that has it.
        package: &'static str,
    },
    /// The directory holds no Linux sources.
    #[error("{}: this is no Linux source tree; give the directory that holds its Makefile and Kconfig", .0.display())]
    NotASourceTree(PathBuf),
    /// The source tree was built in, which a separate build tree cannot bear.
    #[error("{}: this source tree has been built in; run `make mrproper` there, or give a clean copy", .0.display())]
    UncleanSourceTree(PathBuf),
    /// Options that were asked for are not in the configuration.
    #[error("these options are not what kernel/*.config asks for in this version of Linux:{}", lines(.0))]
    Dropped(Vec<String>),
    /// A program failed.
    #[error("{program} failed: {reason}; the end of what it said:\n{output}\nThe build tree is {}", tree.display())]
    Program {
        /// The program.
        program: String,
        /// How it ended.
        reason: String,
        /// The end of its output.
        output: String,
        /// Where it worked.
        tree: PathBuf,
    },
    /// What was built is not what we can boot.
    #[error(transparent)]
    Kernel(#[from] InspectError),
    /// The kernel cannot be put into the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The operating system refused.
    #[error("{action} {} failed: {source}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
}

impl BuildError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

fn lines(options: &[String]) -> String {
    options
        .iter()
        .map(|option| format!("\n  {option}"))
        .collect()
}
