//! The tree that this program belongs to.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The folder of the workspace's manifest, in which Cargo looks for its configuration too.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.parent().context("xtask lies in no workspace")?;
    if !root.join("Cargo.toml").is_file() {
        bail!(
            "{} is gone, for which this program was built: start it by `cargo xtask`",
            root.display()
        );
    }
    Ok(root.to_owned())
}

/// The Cargo that started this program.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}
