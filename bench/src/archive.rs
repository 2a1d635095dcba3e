//! An initial file system: a newc archive with the few entries that a benchmark's guest needs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// An archive that is being written. It has `/dev/console` already.
pub struct Archive {
    file: File,
    path: PathBuf,
}

impl Archive {
    /// Begins the archive `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: PathBuf) -> Result<Self> {
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let mut archive = Self { file, path };
        archive.directory("dev")?;
        archive.entry("dev/console", 0o020_600, (5, 1), &[])?;
        Ok(archive)
    }

    /// Adds an empty directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn directory(&mut self, name: &str) -> Result<()> {
        self.entry(name, 0o040_755, (0, 0), &[])
    }

    /// Adds a program, or a script.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.entry(name, 0o100_755, (0, 0), content)
    }

    /// Adds `/busybox`, this machine's.
    ///
    /// # Errors
    /// There is none, or it cannot be written.
    pub fn busybox(&mut self, busybox: &Path) -> Result<()> {
        let content = fs::read(busybox).with_context(|| {
            format!(
                "cannot read {}: apt-get install busybox-static",
                busybox.display()
            )
        })?;
        self.program("busybox", &content)
    }

    /// Ends the archive. Returns its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.path)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<()> {
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
        self.file.write_all(&header)?;
        self.file.write_all(&body)?;
        Ok(())
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
