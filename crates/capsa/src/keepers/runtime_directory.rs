//! The user's own directory for what lasts as long as the user's processes.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use capsa_core::{Error, Result};

/// Names another runtime directory than the usual one.
pub const DIRECTORY_VARIABLE: &str = "CAPSA_RUNTIME_DIR";

pub(super) fn cannot(what: &str, path: &Path, error: io::Error) -> Error {
    Error::io(format!("cannot {what} {}", path.display()), error)
}

/// `CAPSA_RUNTIME_DIR`, else `capsa` in `XDG_RUNTIME_DIR` or `/run/user/UID`, else a directory
/// of the user's own in the temporary directory.
pub(super) fn runtime_directory() -> PathBuf {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path: &PathBuf| path.is_absolute())
    };
    if let Some(directory) = absolute(DIRECTORY_VARIABLE) {
        return directory;
    }
    let user = rustix::process::getuid().as_raw();
    let users_own = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == user)
    };
    absolute("XDG_RUNTIME_DIR")
        .into_iter()
        .chain([PathBuf::from(format!("/run/user/{user}"))])
        .find(users_own)
        .map_or_else(
            || std::env::temp_dir().join(format!("capsa-{user}")),
            |directory| directory.join("capsa"),
        )
}

/// Makes the directory, or checks that it is this user's and nobody else can look into it.
pub(super) fn private_directory(path: &Path) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(path);
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(cannot("make the runtime directory", path, error));
    }
    // Not what a link names: in a temporary directory somebody else may have put it there.
    let metadata = fs::symlink_metadata(path).map_err(|error| cannot("look at", path, error))?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::getuid().as_raw() {
        return Err(Error::file(
            "runtime directory",
            path,
            "it is not a directory of your own",
            format!("remove it, or name another one with {DIRECTORY_VARIABLE}"),
        ));
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(path, Permissions::from_mode(0o700))
            .map_err(|error| cannot("close to others", path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_that_others_may_enter_is_closed_to_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();

        private_directory(&path).unwrap();

        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn link_in_place_of_the_directory_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        std::os::unix::fs::symlink("/tmp", &path).unwrap();

        assert!(private_directory(&path).is_err());
    }
}
