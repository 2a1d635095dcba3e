//! A place for the files of one run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A folder for one run, removed at its end.
pub struct Folder(PathBuf);

impl Folder {
    /// Makes it in the system's place for temporary files.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> Result<Self> {
        Self::inside(&std::env::temp_dir())
    }

    /// Makes it in `parent`.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn inside(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("capsa-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    /// The path of the file `name` in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}
