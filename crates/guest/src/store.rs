//! Kernels by name, in a data directory.
//!
//! In a data directory D, kernel NAME is the folder `D/kernels/NAME` with the file `kernel` and its
//! record `kernel.json`; the one called [`DEFAULT_KERNEL`] is what a VM gets that names none. The
//! default initramfs is `D/initramfs/default.cpio`. Every file appears and changes in one step
//! (written beside its place, then renamed), and writers take turns by a lock, so readers need none.

mod record;
#[cfg(test)]
mod tests;
mod write;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use record::{KernelRecord, RECORD_FILE};
pub(crate) use write::{NewKernel, write_atomically};

use crate::inspect::{Detail, InspectError, KernelImage, inspect_file};

/// The name of the kernel of a VM that names none.
pub const DEFAULT_KERNEL: &str = "default";
/// The file in a kernel's folder that is booted.
pub const KERNEL_FILE: &str = "kernel";
/// The longest name of a kernel.
const MAX_NAME_BYTES: usize = 64;

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The name cannot be one of a kernel.
    #[error(
        "{0:?} cannot name a kernel: give 1 to {MAX_NAME_BYTES} letters, digits, dots, dashes and \
         underscores, a letter or digit first"
    )]
    Name(String),
    /// There is no kernel of this name.
    #[error("there is no kernel called {name} in {}; `capsa kernel list` shows those that are there", directory.display())]
    Unknown {
        /// The name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The file is not a kernel that can be booted.
    #[error(transparent)]
    Kernel(#[from] InspectError),
    /// There is no place for the user's data.
    #[error("there is no data directory: set HOME or XDG_DATA_HOME to an absolute path")]
    NoDataDirectory,
    /// The operating system refused.
    #[error("{}: {action} failed: {source}", path.display())]
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

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// One kernel of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredKernel {
    /// Its name.
    pub name: String,
    /// The file to boot.
    pub path: PathBuf,
    /// What is written down about it; `None` where the record is missing or unreadable.
    pub record: Option<KernelRecord>,
}

/// The kernels in one data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelStore {
    directory: PathBuf,
}

impl KernelStore {
    /// The store in data directory `directory`, which need not exist yet.
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The user's own store: `$XDG_DATA_HOME/capsa`, else `~/.local/share/capsa`.
    ///
    /// # Errors
    /// [`StoreError::NoDataDirectory`] where neither variable gives an absolute path.
    pub fn user() -> Result<Self, StoreError> {
        crate::discover::user_data_directory()
            .map(Self::at)
            .ok_or(StoreError::NoDataDirectory)
    }

    /// The data directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the default initramfs of this data directory lies or would lie.
    pub fn default_initramfs(&self) -> PathBuf {
        self.directory.join("initramfs").join("default.cpio")
    }

    /// The file of kernel `name`, which need not be there.
    ///
    /// # Errors
    /// [`StoreError::Name`] where the name cannot be one.
    pub fn kernel_path(&self, name: &str) -> Result<PathBuf, StoreError> {
        Ok(self.folder(name)?.join(KERNEL_FILE))
    }

    /// The kernel called `name`.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] where there is none, [`StoreError::Name`] where there cannot be one.
    pub fn get(&self, name: &str) -> Result<StoredKernel, StoreError> {
        let path = self.kernel_path(name)?;
        if !path.is_file() {
            return Err(StoreError::Unknown {
                name: name.to_owned(),
                directory: self.kernels(),
            });
        }
        Ok(StoredKernel {
            name: name.to_owned(),
            record: record::read(&self.folder(name)?),
            path,
        })
    }

    /// All kernels, by name.
    ///
    /// # Errors
    /// [`StoreError::Io`] where the directory is there and cannot be read.
    pub fn list(&self) -> Result<Vec<StoredKernel>, StoreError> {
        let kernels = self.kernels();
        let entries = match fs::read_dir(&kernels) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(StoreError::io("reading the directory", &kernels)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(StoreError::io("reading the directory", &kernels))?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) else {
                continue;
            };
            match self.get(name) {
                Ok(kernel) => found.push(kernel),
                // A folder without a kernel: removed since, or being written.
                Err(StoreError::Unknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Copies the kernel at `file`, any bzImage, `vmlinux` or arm64 `Image`, into the store.
    ///
    /// A kernel that was there under the name is replaced.
    ///
    /// # Errors
    /// [`StoreError::Kernel`] where the file is none that this machine's guests can boot.
    pub fn import(&self, file: &Path, name: &str) -> Result<StoredKernel, StoreError> {
        let image = inspect_file(file, Detail::Version)?;
        if let Some(host) = crate::Arch::host() {
            image.require_arch(file, host)?;
        }
        self.install(name, &NewKernel::imported(file, image))
    }

    fn kernels(&self) -> PathBuf {
        self.directory.join("kernels")
    }

    fn folder(&self, name: &str) -> Result<PathBuf, StoreError> {
        check_name(name)?;
        Ok(self.kernels().join(name))
    }
}

/// A name that is safe as a folder's and is never taken for an option or a hidden file.
fn check_name(name: &str) -> Result<(), StoreError> {
    let sound = name.len() <= MAX_NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if sound {
        Ok(())
    } else {
        Err(StoreError::Name(name.to_owned()))
    }
}

/// Whether `text` can be the name of a stored kernel.
pub(crate) fn is_name(text: &str) -> bool {
    check_name(text).is_ok()
}

impl From<&KernelImage> for KernelRecord {
    fn from(image: &KernelImage) -> Self {
        Self {
            name: String::new(),
            version: image.version.clone(),
            arch: image.arch,
            format: image.format,
            sha256: String::new(),
            bytes: image.file_bytes,
            source: String::new(),
            recipe: None,
            created_unix_seconds: 0,
        }
    }
}
