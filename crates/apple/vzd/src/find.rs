//! Finds the `capsa-vzd` program.

use std::env;
use std::path::{Path, PathBuf};

/// Names the program, where the caller does not.
const VARIABLE: &str = "CAPSA_VZD";
const NAME: &str = "capsa-vzd";

/// The first of: the given path, `CAPSA_VZD`, beside the running executable, `PATH`.
pub(crate) fn find(given: Option<&Path>) -> Option<PathBuf> {
    let named = given
        .map(Path::to_owned)
        .or_else(|| env::var_os(VARIABLE).map(PathBuf::from));
    if let Some(named) = named {
        return named.is_file().then_some(named);
    }
    let executable = env::current_exe().ok();
    find_in(
        executable.as_deref(),
        &env::var_os("PATH").unwrap_or_default(),
    )
}

fn find_in(executable: Option<&Path>, path: &std::ffi::OsStr) -> Option<PathBuf> {
    let folder = executable.and_then(Path::parent);
    // Test binaries and examples stand one folder below the programs that cargo builds.
    let beside = [folder, folder.and_then(Path::parent)];
    beside
        .into_iter()
        .flatten()
        .map(Path::to_owned)
        .chain(env::split_paths(path).filter(|folder| folder.is_absolute()))
        .map(|folder| folder.join(NAME))
        .find(|candidate| candidate.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn program_beside_the_executable_comes_before_path() {
        let root = tempfile::TempDir::new().unwrap();
        let (app, bin) = (root.path().join("app"), root.path().join("bin"));
        for folder in [&app, &bin] {
            fs::create_dir(folder).unwrap();
        }
        fs::write(bin.join(NAME), "").unwrap();
        let executable = app.join("program");
        let found = || find_in(Some(&executable), bin.as_os_str());

        assert_eq!(found(), Some(bin.join(NAME)));
        fs::write(app.join(NAME), "").unwrap();
        assert_eq!(found(), Some(app.join(NAME)));
        assert_eq!(find_in(None, "relative".as_ref()), None);
    }

    #[test]
    fn explicit_path_that_is_not_there_is_not_replaced_by_another() {
        assert_eq!(find(Some(Path::new("/nowhere/capsa-vzd"))), None);
    }
}
