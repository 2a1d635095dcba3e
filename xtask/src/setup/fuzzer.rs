//! `cargo-fuzz` from crates.io, in the cache directory.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{packages, progress, tools};
use crate::cache;

const VERSION: &str = "0.13.2";

/// The program, built where it is missing.
pub(crate) fn ensure() -> Result<PathBuf> {
    super::ensure_packages(&[packages::FUZZ], &Vec::new)?;
    let root = cache::directory()?.join(format!("cargo-fuzz-{VERSION}"));
    let program = root.join("bin/cargo-fuzz");
    if tools::is_program(&program) {
        return Ok(program);
    }
    let _lock = cache::lock("cargo-fuzz")?;
    if tools::is_program(&program) {
        return Ok(program);
    }
    let step = progress::step(format!("building cargo-fuzz {VERSION}"));
    let status = Command::new("cargo")
        .args([
            "install",
            "--quiet",
            "--locked",
            "--version",
            VERSION,
            "--root",
        ])
        .arg(&root)
        .arg("cargo-fuzz")
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo install cargo-fuzz ended with {status}");
    }
    step.finish();
    Ok(program)
}
