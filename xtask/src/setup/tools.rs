//! Finds the programs that Debian's packages, or a Nix shell, bring.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where root's programs are, which an ordinary user's `PATH` may lack.
const ALSO: &[&str] = &["/usr/sbin", "/sbin"];

/// A program by its name, on `PATH`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(ALSO.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| is_program(path))
}

/// The virtio-fs server, of which there are two: QEMU's own of before 8.0, and its successor in Rust, which has other options.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "the lab reads it")
)]
pub(crate) struct Virtiofsd {
    pub(crate) path: PathBuf,
    pub(crate) is_rust: bool,
}

pub(crate) fn virtiofsd() -> Option<Virtiofsd> {
    let path = find("virtiofsd").or_else(|| {
        [
            "/usr/libexec/virtiofsd",
            "/usr/lib/virtiofsd",
            "/usr/lib/qemu/virtiofsd",
        ]
        .iter()
        .map(PathBuf::from)
        .find(|path| is_program(path))
    })?;
    // Only the successor knows this option, and it is named in its help.
    let help = Command::new(&path).arg("--help").output().ok()?;
    let is_rust = String::from_utf8_lossy(&help.stdout).contains("--shared-dir");
    Some(Virtiofsd { path, is_rust })
}

/// Whether there is a file here that may be run.
pub(crate) fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
