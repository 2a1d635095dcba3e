//! `cargo xtask soak`: the ignored tests of the `soak` test programs, which take too long for each
//! change. `docs/soak.md` has what came of them.

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
    setup::for_tests()?;
    let backends = match arguments.backend.as_slice() {
        [] => &[Backend::Qemu, Backend::Kvm],
        chosen => chosen,
    };
    if backends.contains(&Backend::Kvm) {
        setup::lab()?;
    }
    let programs = build(&root)?;
    let mut failed = false;
    for program in &programs {
        for backend in backends {
            eprintln!("== {} on {backend:?}", program.display());
            let status = command(program, *backend, arguments.name.as_deref())?
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

/// Builds the test programs that are called `soak`.
fn build(root: &Path) -> Result<Vec<PathBuf>> {
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
        .args(["test", "--workspace", "--no-run", "--test", "soak"])
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
        .filter(|artifact| artifact.target.name == "soak")
        .map(|artifact| artifact.executable)
        .collect())
}
