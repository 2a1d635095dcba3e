//! `cargo xtask darwin`: type-checks, lints and links the macOS code on Linux, for both processors
//! that macOS runs on, from Debian's, crates.io's and PyPI's packages alone. `docs/macos.md` says
//! what that can find and what it cannot.

mod sdk;
mod selectors;
mod toolchain;

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::darwin_features::FEATURES;
use toolchain::Toolchain;

/// The two targets.
const TARGETS: [&str; 2] = ["aarch64-apple-darwin", "x86_64-apple-darwin"];

#[derive(Args)]
pub(crate) struct DarwinArguments {
    /// What to do; everything when it is left out
    #[arg(value_enum, default_value_t = Step::All)]
    step: Step,
    /// Only for this target; for both when it is left out
    #[arg(long, value_parser = TARGETS)]
    target: Option<String>,
    /// Passed on to clippy, behind `--`; `-D warnings` when it is left out
    #[arg(last = true)]
    clippy: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Get the packages, build the standard library for both targets
    Setup,
    /// Run clippy for both targets, tests included
    Clippy,
    /// Link every binary, example and test binary for both targets
    Link,
    /// Compare the selectors in `define_class!` blocks with the objc2 crates
    Selectors,
    /// All of them, in this order
    All,
}

pub(crate) fn run(arguments: DarwinArguments) -> Result<ExitCode> {
    let step = arguments.step;
    let wanted = |one: Step| step == one || step == Step::All;
    if wanted(Step::Selectors) && step != Step::All {
        selectors::check(&workspace_root()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let only = arguments.target.as_deref();
    let targets: Vec<&str> = (TARGETS.into_iter())
        .filter(|target| only.is_none_or(|only| only == *target))
        .collect();
    let toolchain = Toolchain::set_up(&targets)?;
    if wanted(Step::Clippy) {
        let flags = if arguments.clippy.is_empty() {
            vec!["-D".to_owned(), "warnings".to_owned()]
        } else {
            arguments.clippy
        };
        for &target in &targets {
            let mut clippy = cargo(&toolchain, target, "clippy")?;
            clippy.arg("--").args(&flags);
            must_succeed(clippy, &format!("clippy for {target}"))?;
        }
    }
    if wanted(Step::Link) {
        for &target in &targets {
            let sdk = sdk::write(&toolchain, &workspace_root()?, target)?;
            let mut build = cargo(&toolchain, target, "build")?;
            build.env("SDKROOT", sdk).env(
                format!("CARGO_TARGET_{}_LINKER", variable_name(target)),
                toolchain.linker()?,
            );
            // Nobody runs what comes of it. Without optimisation more calls are left to be found, too.
            let profile = [
                ("OPT_LEVEL", "0"),
                ("DEBUG", "none"),
                ("INCREMENTAL", "false"),
                // For macOS this would be done by a program that Debian has not.
                ("STRIP", "none"),
            ];
            for (setting, value) in profile {
                build.env(format!("CARGO_PROFILE_DEV_{setting}"), value);
            }
            must_succeed(build, &format!("linking for {target}"))?;
        }
    }
    if wanted(Step::Selectors) {
        selectors::check(&workspace_root()?)?;
    }
    let done = match step {
        Step::Setup => "set up",
        Step::Clippy => "linted",
        Step::Link => "linked",
        Step::Selectors | Step::All => "linted and linked, selectors compared",
    };
    println!("darwin: {done} for {}", targets.join(" and "));
    Ok(ExitCode::SUCCESS)
}

/// `cargo SUBCOMMAND` over the whole workspace and every kind of target, for `target`.
fn cargo(toolchain: &Toolchain, target: &str, subcommand: &str) -> Result<Command> {
    let mut command = toolchain.cargo(target);
    command
        .current_dir(workspace_root()?)
        .args([subcommand, "--workspace", "--all-targets", "--keep-going"])
        .args(["--target", target, "--features", FEATURES]);
    Ok(command)
}

fn must_succeed(mut command: Command, what: &str) -> Result<()> {
    println!("darwin: {what}");
    let status = command
        .status()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{what} failed ({status}): its messages stand above");
    }
    Ok(())
}

/// `aarch64-apple-darwin` as cargo writes it in the names of environment variables.
fn variable_name(target: &str) -> String {
    target.to_uppercase().replace('-', "_")
}

fn workspace_root() -> Result<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().context("xtask has no parent folder")?;
    Ok(root.to_owned())
}
