//! `cargo xtask darwin` on a Mac: its own toolchain has everything, so only clippy is left to run.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

#[derive(Args)]
pub(crate) struct DarwinArguments {
    /// What to do
    #[arg(value_enum, default_value_t = Step::Clippy)]
    step: Step,
    /// Passed on to clippy, behind `--`; `-D warnings` when it is left out
    #[arg(last = true)]
    clippy: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Step {
    /// Run clippy, tests included
    Clippy,
}

pub(crate) fn run(DarwinArguments { step, clippy }: DarwinArguments) -> Result<ExitCode> {
    let Step::Clippy = step;
    let mut command = Command::new("cargo");
    command
        .args(["clippy", "--workspace", "--all-targets", "--features"])
        .args([crate::darwin_features::FEATURES, "--"]);
    if clippy.is_empty() {
        command.args(["-D", "warnings"]);
    }
    let status = command
        .args(clippy)
        .status()
        .context("cannot start cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
