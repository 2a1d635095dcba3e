//! The archive format that the kernel takes as its first file system ("newc", the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    made: BTreeSet<PathBuf>,
    entries: u32,
}

impl Archive {
    /// Adds a directory and those above it.
    pub(crate) fn directory(&mut self, path: &Path) -> Result<()> {
        let mut so_far = PathBuf::new();
        for part in path.components() {
            match part {
                Component::RootDir => continue,
                Component::Normal(name) => so_far.push(name),
                _ => bail!("{} is not a plain absolute path", path.display()),
            }
            if self.made.insert(so_far.clone()) {
                self.entry(&so_far, DIRECTORY, (0, 0), &[])?;
            }
        }
        Ok(())
    }

    pub(crate) fn file(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        self.node(path, PROGRAM, (0, 0), content)
    }

    pub(crate) fn symlink(&mut self, path: &Path, target: &Path) -> Result<()> {
        self.node(path, SYMLINK, (0, 0), target.as_os_str().as_encoded_bytes())
    }

    pub(crate) fn character_device(&mut self, path: &Path, major: u32, minor: u32) -> Result<()> {
        self.node(path, CHARACTER_DEVICE, (major, minor), &[])
    }

    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), &[])?;
        Ok(self.bytes)
    }

    fn node(&mut self, path: &Path, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        let name = path.strip_prefix("/").unwrap_or(path).to_owned();
        if self.made.insert(name.clone()) {
            self.entry(&name, mode, device, content)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        name: &Path,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> Result<()> {
        let name = name.as_os_str().as_encoded_bytes();
        let size = u32::try_from(content.len())
            .context("a file of 4 GiB or more does not fit the archive")?;
        let inode = self.entries;
        self.entries += 1;
        let links = 1;
        let name_size = name.len() + 1;
        self.bytes.extend_from_slice(
            format!(
                "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}{0:08x}{0:08x}{major:08x}{minor:08x}{name_size:08x}{0:08x}",
                0
            )
            .as_bytes(),
        );
        self.bytes.extend_from_slice(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_header_has_the_size_and_the_magic_of_newc() {
        let mut archive = Archive::default();

        archive.file(Path::new("/a"), b"xyz").unwrap();
        let bytes = archive.finish().unwrap();

        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..115], b"xyz");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn archive_adds_a_parent_directory_once() {
        let mut archive = Archive::default();

        archive.file(Path::new("/d/a"), b"").unwrap();
        archive.file(Path::new("/d/b"), b"").unwrap();

        assert_eq!(archive.entries, 3);
    }

    #[test]
    fn archive_refuses_a_path_that_climbs() {
        let mut archive = Archive::default();

        assert!(archive.directory(Path::new("/d/../e")).is_err());
    }
}
