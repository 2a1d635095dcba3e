//! Finds the `vfkit` program.

use std::env;
use std::path::{Path, PathBuf};

/// Names the program, where the caller does not.
const VARIABLE: &str = "CAPSA_VFKIT";
/// Where Homebrew installs it; a program started from the Dock has no `PATH` with these.
const USUAL_FOLDERS: [&str; 2] = ["/opt/homebrew/bin", "/usr/local/bin"];

/// The first of: the given path, `CAPSA_VFKIT`, `PATH`, Homebrew's folders.
pub(crate) fn find(given: Option<&Path>) -> Option<PathBuf> {
    let named = given
        .map(Path::to_owned)
        .or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
    if let Some(named) = named {
        return named.is_file().then_some(named);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(USUAL_FOLDERS.map(PathBuf::from))
        .map(|folder| folder.join("vfkit"))
        .find(|candidate| candidate.is_absolute() && candidate.is_file())
}
