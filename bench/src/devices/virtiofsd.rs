//! The peer's file server, of which there are two: QEMU's own of before 8.0, and its successor in Rust.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process::Process;

/// Serves `directory` on the socket `path`, with the cache policy that both it and Capsa have by default.
pub(crate) fn start(program: &Path, directory: &Path, path: &Path) -> Result<Process> {
    // Its predecessor's socket, if any.
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    // Only the successor knows this option, and it is named in its help.
    let help = Command::new(program)
        .arg("--help")
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let is_rust = String::from_utf8_lossy(&help.stdout).contains("--shared-dir");
    // It listens when it starts, so that nobody has to wait for it: the socket is its standard input.
    let mut command: Vec<OsString> = vec![program.into(), "--fd=0".into()];
    if is_rust {
        let options = ["--log-level", "error", "--cache", "auto", "--shared-dir"];
        command.extend(options.map(OsString::from));
        command.push(directory.into());
    } else {
        let mut source = OsString::from("source=");
        source.push(directory);
        command.extend(["-o", "log_level=err", "-o", "cache=auto", "-o"].map(OsString::from));
        command.push(source);
    }
    Process::start(
        &command,
        Stdio::from(OwnedFd::from(listener)),
        Stdio::null(),
    )
}
