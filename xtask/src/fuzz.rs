//! `cargo xtask fuzz`: runs the fuzz targets of `fuzz/` by libFuzzer, on the stable toolchain.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::setup::fuzzer;
use crate::workspace;

#[derive(Args)]
pub(crate) struct FuzzArguments {
    /// The target [default: each of them in turn]
    target: Option<String>,
    /// How long to fuzz each target
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u64,
    /// Name the targets, and do nothing more
    #[arg(long)]
    list: bool,
}

pub(crate) fn run(arguments: &FuzzArguments) -> Result<ExitCode> {
    let root = workspace::root()?;
    let targets = targets(&root)?;
    if arguments.list {
        for target in &targets {
            println!("{target}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let chosen: Vec<&String> = targets
        .iter()
        .filter(|target| {
            arguments
                .target
                .as_ref()
                .is_none_or(|wanted| wanted == *target)
        })
        .collect();
    if chosen.is_empty() {
        let wanted = arguments.target.as_deref().unwrap_or_default();
        bail!(
            "there is no fuzz target {wanted}; there are: {}",
            targets.join(", ")
        );
    }
    let cargo_fuzz = fuzzer::ensure()?;
    let mut failed = Vec::new();
    for target in chosen {
        println!("fuzz: {target} for {} seconds", arguments.seconds);
        if !fuzz(&cargo_fuzz, &root, target, arguments.seconds)? {
            failed.push(target.as_str());
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "fuzz: an input that fails was found for: {}",
        failed.join(", ")
    );
    Ok(ExitCode::FAILURE)
}

/// Whether the target held out. The input that it did not hold out against is named in the output.
fn fuzz(cargo_fuzz: &Path, root: &Path, target: &str, seconds: u64) -> Result<bool> {
    // What is found goes into the first one.
    let corpus = Path::new("fuzz/corpus").join(target);
    std::fs::create_dir_all(root.join(&corpus)).context("cannot create the fuzzer's corpus")?;
    let seeds = Path::new("fuzz/seeds").join(target);
    let status = Command::new(cargo_fuzz)
        // Cargo would pass the name of the subcommand.
        .args(["fuzz", "run", target])
        .arg(&corpus)
        .args(Some(&seeds).filter(|seeds| root.join(seeds).is_dir()))
        .args(["--", &format!("-max_total_time={seconds}")])
        .current_dir(root)
        // The sanitizers' options are the compiler's unstable ones.
        .env("RUSTC_BOOTSTRAP", "1")
        .status()
        .context("cannot run cargo-fuzz")?;
    Ok(status.success())
}

/// The programs of the fuzz crate, which is a workspace of its own.
fn targets(root: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Workspace {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let manifest: PathBuf = root.join("fuzz/Cargo.toml");
    let output = workspace::cargo(root)
        .args([
            "metadata",
            "--no-deps",
            "--format-version=1",
            "--manifest-path",
        ])
        .arg(&manifest)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo cannot read {}", manifest.display());
    }
    let workspace: Workspace =
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata says")?;
    let mut targets: Vec<String> = workspace
        .packages
        .into_iter()
        .flat_map(|package| package.targets)
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .map(|target| target.name)
        .collect();
    targets.sort();
    Ok(targets)
}
