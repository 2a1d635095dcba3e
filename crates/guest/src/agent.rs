//! Building the agent, and other programs for guests, from a checkout.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that programs for guests are built for: named even where it is the host's own, so that the flags
/// for a static program do not reach build scripts and procedural macros.
const TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// A static program, whose relocations are packed: they are 48 KiB otherwise.
const FLAGS: &str = "-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs";

/// Why the agent, or another program, was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// Cargo cannot be started.
    #[error("cannot run cargo: {0}; install Rust")]
    Cargo(#[source] io::Error),
    /// Cargo failed; it has said why.
    #[error("building {0} failed; what the compiler said is above")]
    Build(String),
}

/// Builds the agent of the checkout at `workspace`, statically linked, with its build tree in
/// `cache`; gives the program. Takes well under a second where nothing has changed.
///
/// # Errors
/// [`AgentError`].
pub fn build(workspace: &Path, cache: &Path) -> Result<PathBuf, AgentError> {
    build_program(workspace, cache, "capsa-agent")
}

/// Builds another program for guests in the same way: the one that the package `package` has, by
/// its name.
///
/// # Errors
/// [`AgentError`].
pub fn build_program(workspace: &Path, cache: &Path, package: &str) -> Result<PathBuf, AgentError> {
    let target_directory = cache.join("agent-target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace)
        .args(["build", "--quiet", "--package", package])
        .args(["--profile", "guest", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_directory)
        .env("RUSTFLAGS", FLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .map_err(AgentError::Cargo)?;
    if !status.success() {
        return Err(AgentError::Build(package.to_owned()));
    }
    Ok(target_directory.join(TARGET).join("guest").join(package))
}
