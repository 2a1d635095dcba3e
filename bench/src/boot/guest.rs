//! The guest that every monitor boots: busybox as `/init`, which prints one line and waits.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What `/init` prints first.
pub(crate) const MARK: &str = "CAPSA-BENCH-INIT-IS-UP";

/// A folder for one run, removed at its end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("capsa-bench-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes an archive with busybox and an `/init` that prints [`MARK`] and then waits for input.
    pub(crate) fn write_initramfs(&self, busybox: &Path) -> Result<PathBuf> {
        let busybox = fs::read(busybox).with_context(|| {
            format!(
                "cannot read {}: apt-get install busybox-static",
                busybox.display()
            )
        })?;
        let init = format!("#!/busybox sh\necho {MARK}\nread line\n/busybox poweroff -f\n");
        let path = self.path("initramfs.cpio");
        let mut archive = File::create(&path)?;
        entry(&mut archive, "dev", 0o040_755, (0, 0), &[])?;
        entry(&mut archive, "dev/console", 0o020_600, (5, 1), &[])?;
        entry(&mut archive, "busybox", 0o100_755, (0, 0), &busybox)?;
        entry(&mut archive, "init", 0o100_755, (0, 0), init.as_bytes())?;
        entry(&mut archive, "TRAILER!!!", 0, (0, 0), &[])?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

/// One entry of a newc archive.
fn entry(out: &mut File, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<()> {
    let fields = [
        0,
        mode,
        0,
        0,
        1,
        0,
        u32::try_from(data.len())?,
        0,
        0,
        device.0,
        device.1,
        u32::try_from(name.len() + 1)?,
        0,
    ];
    let mut header = b"070701".to_vec();
    for field in fields {
        header.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    header.extend_from_slice(name.as_bytes());
    header.push(0);
    pad(&mut header);
    let mut body = data.to_vec();
    pad(&mut body);
    out.write_all(&header)?;
    out.write_all(&body)?;
    Ok(())
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
