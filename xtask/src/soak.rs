//! `cargo xtask soak`: the ignored tests of the test programs called `soak` or `soak_…`, which take too
//! long for each change. `docs/soak.md` has what came of them.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use serde::Deserialize;

use crate::test::FEATURES;
use crate::{setup, workspace};

#[derive(Args)]
pub(crate) struct SoakArguments {
    /// Only on this backend (repeatable); KVM's run in the lab [default: both]
    #[arg(long, value_name = "BACKEND")]
    backend: Vec<Backend>,
    /// Only the test programs whose name contains this (repeatable): soak_network
    #[arg(long, value_name = "NAME")]
    program: Vec<String>,
    /// Only the tests whose name contains this
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    Qemu,
    Kvm,
}

pub(crate) fn run(arguments: &SoakArguments) -> Result<ExitCode> {
    let root = workspace::root()?;
    setup::for_soak_tests()?;
    let backends = match arguments.backend.as_slice() {
        [] => &[Backend::Qemu, Backend::Kvm],
        chosen => chosen,
    };
    if backends.contains(&Backend::Kvm) {
        setup::lab()?;
    }
    let mut programs = build(&root)?;
    if !arguments.program.is_empty() {
        let wanted = |name: &str| arguments.program.iter().any(|part| name.contains(part));
        programs.retain(|program| wanted(&program.name));
    }
    if programs.is_empty() {
        bail!("no test program has such a name");
    }
    let mut failed = false;
    for program in &programs {
        for backend in backends {
            eprintln!("== {} on {backend:?}", program.name);
            let status = command(&program.executable, *backend, arguments.name.as_deref())?
                .current_dir(&root)
                .status()
                .context("cannot run the soak tests")?;
            failed |= !status.success();
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn command(program: &Path, backend: Backend, name: Option<&str>) -> Result<Command> {
    let mut command = match backend {
        Backend::Qemu => {
            let mut command = Command::new(program);
            command.env("CAPSA_TEST_BACKEND", "qemu");
            command
        }
        Backend::Kvm => {
            let own = std::env::current_exe().context("cannot find this program's own file")?;
            let mut command = Command::new(own);
            command
                .env("CAPSA_TEST_BACKEND", "kvm")
                .args(["lab", "--"])
                .arg(program);
            command
        }
    };
    command.args(["--ignored", "--nocapture", "--test-threads=1"]);
    command.args(name);
    Ok(command)
}

struct Program {
    name: String,
    executable: PathBuf,
}

/// Builds the test programs that are called `soak` or `soak_…`.
fn build(root: &Path) -> Result<Vec<Program>> {
    #[derive(Deserialize)]
    struct Artifact {
        target: Target,
        executable: PathBuf,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    let output = workspace::cargo(root)
        .args(["test", "--workspace", "--no-run", "--test", "soak*"])
        .args(["--features", FEATURES])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!(
            "the soak tests do not build: cargo ended with {}",
            output.status
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|message| serde_json::from_str::<Artifact>(message).ok())
        .filter(|artifact| artifact.target.name.starts_with("soak"))
        .map(|artifact| Program {
            name: artifact.target.name,
            executable: artifact.executable,
        })
        .collect())
}
