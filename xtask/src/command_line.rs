//! `cargo xtask run`: the command line `capsa`, built from this tree, with all that it needs.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{setup, workspace};

/// What the guest runs where no arguments are given: enough to see that it is a machine of its own.
const DEMONSTRATION: &str = "echo \"Hello from a virtual machine: $(uname -srm), $(nproc) processors, \
$(free -m | awk '/^Mem/ {print $2}') MiB of memory.\"";

/// Becomes `capsa` with these arguments; without any, shows a guest.
pub(crate) fn run(arguments: &[OsString]) -> Result<ExitCode> {
    let root = workspace::root()?;
    setup::for_running()?;
    let program = build(&root, "capsa-cli", "capsa", &[])?;
    if arguments.is_empty() {
        return demonstrate(&program);
    }
    let error = Command::new(&program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

fn demonstrate(program: &Path) -> Result<ExitCode> {
    let arguments = ["run", "--cpus", "2", "--memory", "256M", "--"];
    eprintln!("$ capsa {} sh -c '…'", arguments.join(" "));
    let status = Command::new(program)
        .args(arguments)
        .args(["sh", "-c", DEMONSTRATION])
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(exit_code(status))
}

pub(crate) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Builds a program of this tree.
pub(crate) fn build(
    root: &Path,
    package: &str,
    program: &str,
    options: &[&str],
) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Artifact {
        executable: PathBuf,
    }
    let output = workspace::cargo(root)
        .args([
            "build",
            "--package",
            package,
            "--bin",
            program,
            "--message-format=json-render-diagnostics",
        ])
        .args(options)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "{program} does not build: cargo ended with {}",
            output.status
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|message| serde_json::from_str::<Artifact>(message).ok())
        .map(|artifact| artifact.executable)
        .with_context(|| format!("cargo does not say where it put the program {program}"))
}
