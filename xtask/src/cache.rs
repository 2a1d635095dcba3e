//! Where set-up keeps what it fetched and built.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result};

/// `$XDG_CACHE_HOME/capsa`, else `~/.cache/capsa`; created when it is missing.
pub(crate) fn directory() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set: set one, so that set-up has a place to keep its files")?;
    let directory = base.join("capsa");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create the cache directory {}", directory.display()))?;
    Ok(directory)
}

/// Held while something in the cache is being made, so that two set-ups at once do not make it twice.
pub(crate) struct Lock {
    _file: File,
}

/// Waits for the named lock of the cache. It is let go when the value is dropped or the process ends.
pub(crate) fn lock(name: &str) -> Result<Lock> {
    let path = directory()?.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(Lock { _file: file })
}
