//! The guest that every monitor boots: busybox as `/init`, which prints one line and waits.

use std::path::{Path, PathBuf};

use anyhow::Result;
use capsa_bench::archive::Archive;
use capsa_bench::folder::Folder;

/// What `/init` prints first.
pub(crate) const MARK: &str = "CAPSA-BENCH-INIT-IS-UP";

/// Writes an archive with busybox and an `/init` that prints [`MARK`] and then waits for input.
pub(crate) fn write_initramfs(folder: &Folder, busybox: &Path) -> Result<PathBuf> {
    let init = format!("#!/busybox sh\necho {MARK}\nread line\n/busybox poweroff -f\n");
    let mut archive = Archive::create(folder.path("initramfs.cpio"))?;
    archive.busybox(busybox)?;
    archive.program("init", init.as_bytes())?;
    archive.finish()
}
