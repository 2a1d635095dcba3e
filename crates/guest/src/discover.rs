//! Where the kernel and the initramfs of a VM are found.
//!
//! In this order: what the caller names; the variable `CAPSA_KERNEL` (`CAPSA_INITRD`); then the
//! default of each data directory: the user's (`$XDG_DATA_HOME/capsa`, else
//! `~/.local/share/capsa`), beside the executable (its folder, and `../share/capsa` from there),
//! `/usr/share/capsa`. What is named and not there is an error; it is never passed over.

#[cfg(test)]
mod tests;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::store::{DEFAULT_KERNEL, KernelStore, is_name};

/// The variable that names the kernel of VMs that name none.
pub const KERNEL_VARIABLE: &str = "CAPSA_KERNEL";
/// The variable that names the initramfs of VMs that name none.
pub const INITRD_VARIABLE: &str = "CAPSA_INITRD";

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Piece {
    /// The kernel.
    Kernel,
    /// The initramfs.
    Initramfs,
}

impl Piece {
    /// The variable that names it.
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Kernel => KERNEL_VARIABLE,
            Self::Initramfs => INITRD_VARIABLE,
        }
    }

    /// What to do to get one. An initramfs holds the agent, which is built in a checkout.
    const fn fix(self) -> &'static str {
        match self {
            Self::Kernel => {
                "run `capsa kernel build`, or `cargo xtask kernel` in a checkout of capsa"
            }
            Self::Initramfs => "run `cargo xtask initramfs` in a checkout of capsa",
        }
    }

    fn default_in(self, store: &KernelStore) -> PathBuf {
        match self {
            Self::Kernel => store
                .kernel_path(DEFAULT_KERNEL)
                .unwrap_or_else(|_| store.directory().to_owned()),
            Self::Initramfs => store.default_initramfs(),
        }
    }
}

impl fmt::Display for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
        })
    }
}

/// Who chose a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The caller, by its path.
    Path,
    /// The caller, by the name of a stored kernel.
    Name(String),
    /// The variable of this name.
    Variable(&'static str),
    /// It is the default of this data directory.
    Default(PathBuf),
}

/// A file that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// The file.
    pub path: PathBuf,
    /// Who chose it.
    pub origin: Origin,
}

/// Why nothing was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoverError {
    /// What the caller names is not there.
    #[error("{piece}: {}: there is no such file{}; check the path", path.display(), or_name(*piece, path))]
    Missing {
        /// What was looked for.
        piece: Piece,
        /// The path that was given.
        path: PathBuf,
    },
    /// What the variable names is not there.
    #[error("{piece}: {}: there is no such file, and {} names it; correct or unset the variable", path.display(), piece.variable())]
    VariableMissing {
        /// What was looked for.
        piece: Piece,
        /// The path in the variable.
        path: PathBuf,
    },
    /// There is no default anywhere.
    #[error("{}", nothing(*piece, searched))]
    Nothing {
        /// What was looked for.
        piece: Piece,
        /// Every place that was looked at, in order.
        searched: Vec<PathBuf>,
    },
}

fn or_name(piece: Piece, path: &Path) -> &'static str {
    match (piece, path.to_str().is_some_and(is_name)) {
        (Piece::Kernel, true) => ", and no stored kernel of this name",
        _ => "",
    }
}

fn nothing(piece: Piece, searched: &[PathBuf]) -> String {
    use fmt::Write;
    let mut text = format!(
        "no {piece} was given, {} is not set, and there is none at",
        piece.variable()
    );
    for place in searched {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {}", place.display());
    }
    let _ = write!(text, "\nto get one, {}", piece.fix());
    text
}

impl From<DiscoverError> for capsa_core::Error {
    fn from(error: DiscoverError) -> Self {
        let (piece, path, reason, fix) = match &error {
            DiscoverError::Missing { piece, path } => (
                *piece,
                path.clone(),
                format!("there is no such file{}", or_name(*piece, path)),
                "check the path".to_owned(),
            ),
            DiscoverError::VariableMissing { piece, path } => (
                *piece,
                path.clone(),
                format!("there is no such file, and {} names it", piece.variable()),
                "correct or unset the variable".to_owned(),
            ),
            DiscoverError::Nothing { piece, searched } => {
                let places: Vec<_> = searched
                    .iter()
                    .map(|place| place.display().to_string())
                    .collect();
                return Self::invalid_setting(
                    piece.to_string(),
                    "none given",
                    format!(
                        "{} is not set, and there is none at {}",
                        piece.variable(),
                        places.join(", ")
                    ),
                    piece.fix(),
                );
            }
        };
        Self::file(piece.to_string(), path, reason, fix)
    }
}

/// Where to look: variables and data directories, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SearchPath {
    /// What [`KERNEL_VARIABLE`] names.
    pub kernel_variable: Option<PathBuf>,
    /// What [`INITRD_VARIABLE`] names.
    pub initrd_variable: Option<PathBuf>,
    /// The data directories, in order.
    pub directories: Vec<PathBuf>,
}

impl SearchPath {
    /// From this process's environment.
    pub fn from_environment() -> Self {
        let executable = env::current_exe().ok();
        Self::from_parts(|name| env::var_os(name), executable.as_deref())
    }

    fn from_parts(variable: impl Fn(&str) -> Option<OsString>, executable: Option<&Path>) -> Self {
        let path = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut directories: Vec<PathBuf> = user_directory(&variable).into_iter().collect();
        if let Some(folder) = executable.and_then(Path::parent) {
            directories.push(folder.to_owned());
            if let Some(prefix) = folder.parent() {
                directories.push(prefix.join("share/capsa"));
            }
        }
        let system = PathBuf::from("/usr/share/capsa");
        if !directories.contains(&system) {
            directories.push(system);
        }
        Self {
            kernel_variable: path(KERNEL_VARIABLE),
            initrd_variable: path(INITRD_VARIABLE),
            directories,
        }
    }

    /// The kernel: `given` is the caller's, a path, or the name of a stored kernel where no such
    /// file is there.
    ///
    /// Whether the file really is a kernel is for [`inspect`](crate::inspect) to say.
    ///
    /// # Errors
    /// [`DiscoverError`], which lists every place and the command that gets a kernel.
    pub fn kernel(&self, given: Option<&Path>) -> Result<Found, DiscoverError> {
        if let Some(given) = given
            && !given.exists()
            && let Some(name) = given.to_str().filter(|text| is_name(text))
            && let Some(stored) = self.stores().find_map(|store| store.get(name).ok())
        {
            return Ok(Found {
                path: stored.path,
                origin: Origin::Name(name.to_owned()),
            });
        }
        self.find(Piece::Kernel, given, self.kernel_variable.as_deref())
    }

    /// The initramfs: `given` is the caller's.
    ///
    /// # Errors
    /// [`DiscoverError`], which lists every place and the command that gets one.
    pub fn initramfs(&self, given: Option<&Path>) -> Result<Found, DiscoverError> {
        self.find(Piece::Initramfs, given, self.initrd_variable.as_deref())
    }

    /// The stores of the data directories, in order.
    pub fn stores(&self) -> impl Iterator<Item = KernelStore> + '_ {
        self.directories.iter().map(KernelStore::at)
    }

    fn find(
        &self,
        piece: Piece,
        given: Option<&Path>,
        variable: Option<&Path>,
    ) -> Result<Found, DiscoverError> {
        if let Some(given) = given {
            let path = given.to_owned();
            return if path.exists() {
                Ok(Found {
                    path,
                    origin: Origin::Path,
                })
            } else {
                Err(DiscoverError::Missing { piece, path })
            };
        }
        if let Some(variable) = variable {
            let path = variable.to_owned();
            return if path.exists() {
                Ok(Found {
                    path,
                    origin: Origin::Variable(piece.variable()),
                })
            } else {
                Err(DiscoverError::VariableMissing { piece, path })
            };
        }
        let mut searched = Vec::new();
        for store in self.stores() {
            let path = piece.default_in(&store);
            if path.is_file() {
                return Ok(Found {
                    path,
                    origin: Origin::Default(store.directory().to_owned()),
                });
            }
            searched.push(path);
        }
        Err(DiscoverError::Nothing { piece, searched })
    }
}

/// The user's data directory, `None` where the environment gives no absolute path.
pub fn user_data_directory() -> Option<PathBuf> {
    user_directory(&|name| env::var_os(name))
}

fn user_directory(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    base_directory(variable, "XDG_DATA_HOME", ".local/share")
}

/// The user's cache directory, `None` where the environment gives no absolute path.
pub fn user_cache_directory() -> Option<PathBuf> {
    base_directory(&|name| env::var_os(name), "XDG_CACHE_HOME", ".cache")
}

/// XDG Base Directory Specification: a relative path in the variable counts as unset.
fn base_directory(
    variable: &impl Fn(&str) -> Option<OsString>,
    name: &str,
    below_home: &str,
) -> Option<PathBuf> {
    let absolute = |name| {
        variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute(name).or_else(|| absolute("HOME").map(|home| home.join(below_home)))?;
    Some(base.join("capsa"))
}
