//! `cargo xtask bench NAME`: measures Capsa beside its peers, where KVM works: here, or in the lab.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use capsa_guest::store::{DEFAULT_KERNEL, KernelStore};
use clap::Args;

use crate::{command_line, setup, test, workspace};

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Which one: `boot`, and the other programs `bench-NAME` of the folder `bench`
    name: String,
    /// Arguments for it
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENT"
    )]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &BenchArguments) -> Result<ExitCode> {
    let root = workspace::root()?;
    setup::for_tests()?;
    let build =
        |package, program: &str| command_line::build(&root, package, program, &["--release"]);
    let capsa = build("capsa-cli", "capsa")?;
    let bench = build("capsa-bench", &format!("bench-{}", arguments.name))?;
    let mut command = place(&capsa)?;
    command.arg(bench).arg("--capsa").arg(capsa);
    if arguments.name == "boot" {
        command.arg("--kernel").arg(default_kernel()?);
    }
    let status = command
        .args(&arguments.arguments)
        .status()
        .context("cannot run the benchmark")?;
    Ok(command_line::exit_code(status))
}

/// A command that runs another one where KVM is of use.
fn place(capsa: &Path) -> Result<Command> {
    match test::kvm_is_usable(capsa)? {
        Ok(()) => Ok(Command::new("env")),
        Err(reason) => {
            eprintln!("bench: in the lab, because of this machine's KVM: {reason}");
            let xtask = std::env::current_exe().context("cannot tell this program's own path")?;
            let mut command = Command::new(xtask);
            command.args(["lab", "--"]);
            Ok(command)
        }
    }
}

fn default_kernel() -> Result<PathBuf> {
    let kernel = KernelStore::user()?.kernel_path(DEFAULT_KERNEL)?;
    if !kernel.is_file() {
        bail!("{} is not there: cargo xtask kernel", kernel.display());
    }
    Ok(kernel)
}
