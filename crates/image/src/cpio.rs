//! Initramfs archives in the format `newc` (Documentation/driver-api/early-userspace/buffer-format.rst
//! in Linux).
//!
//! The same calls give the same bytes: owners are root, times are 0, inode numbers count up.
//!
//! ```
//! use capsa_image::cpio::{Archive, Device};
//! let mut archive = Archive::new(Vec::new());
//! archive.file("init", 0o755, b"#!/bin/sh\n")?;
//! archive.device("dev/console", 0o600, Device::Character { major: 5, minor: 1 })?;
//! archive.symlink("bin/sh", "busybox")?;
//! let bytes = archive.finish()?;
//! assert!(bytes.starts_with(b"070701"));
//! # Ok::<(), capsa_image::cpio::CpioError>(())
//! ```

use std::collections::BTreeSet;
use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const BLOCK_DEVICE: u32 = 0o060_000;
const PERMISSIONS: u32 = 0o7777;
/// The kernel's PATH_MAX, with the closing NUL.
const MAX_PATH_BYTES: usize = 4096;

/// Why an archive cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CpioError {
    /// The path cannot be one in an archive.
    #[error(
        "{0:?} cannot be a path in an initramfs: give a relative one without `.`, `..`, empty parts \
         and NUL, shorter than {MAX_PATH_BYTES} bytes"
    )]
    Path(String),
    /// There is something else under this path already.
    #[error("{0} is in the archive already: give every path once")]
    Duplicate(String),
    /// The content does not fit the format.
    #[error("{path}: {bytes} bytes do not fit an initramfs, whose files are smaller than 4 GiB")]
    TooLarge {
        /// The path of the file.
        path: String,
        /// The length of its content.
        bytes: usize,
    },
    /// The archive cannot be written out.
    #[error("cannot write the archive: {0}")]
    Io(#[from] io::Error),
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// Of a character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Of a block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// An archive that is being written. Directories above an entry are added by themselves (mode 0755).
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    directories: BTreeSet<String>,
    others: BTreeSet<String>,
    entries: u32,
}

struct Header<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    content: &'a [u8],
}

impl<W: Write> Archive<W> {
    /// Begins an archive that is written to `out`.
    pub fn new(out: W) -> Self {
        Self {
            out,
            directories: BTreeSet::new(),
            others: BTreeSet::new(),
            entries: 0,
        }
    }

    /// Adds a directory; `mode` holds its permissions. One that is there already stays as it is.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<(), CpioError> {
        self.enter(path)?;
        if self.others.contains(path) {
            return Err(CpioError::Duplicate(path.to_owned()));
        }
        if self.directories.insert(path.to_owned()) {
            self.entry(&Header {
                name: path,
                mode: DIRECTORY | (mode & PERMISSIONS),
                links: 2,
                device: (0, 0),
                content: &[],
            })?;
        }
        Ok(())
    }

    /// Adds a file; `mode` holds its permissions.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), CpioError> {
        self.leaf(path, FILE | (mode & PERMISSIONS), (0, 0), content)
    }

    /// Adds a symbolic link to `target`.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        if target.is_empty() || target.len() >= MAX_PATH_BYTES || target.contains('\0') {
            return Err(CpioError::Path(target.to_owned()));
        }
        self.leaf(path, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a device node; `mode` holds its permissions.
    ///
    /// # Errors
    /// [`CpioError`].
    pub fn device(&mut self, path: &str, mode: u32, device: Device) -> Result<(), CpioError> {
        let (kind, numbers) = match device {
            Device::Character { major, minor } => (CHARACTER_DEVICE, (major, minor)),
            Device::Block { major, minor } => (BLOCK_DEVICE, (major, minor)),
        };
        self.leaf(path, kind | (mode & PERMISSIONS), numbers, &[])
    }

    /// Ends the archive, and gives back what it was written to.
    ///
    /// # Errors
    /// [`CpioError::Io`].
    pub fn finish(mut self) -> Result<W, CpioError> {
        self.entry(&Header {
            name: "TRAILER!!!",
            mode: 0,
            links: 1,
            device: (0, 0),
            content: &[],
        })?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn leaf(
        &mut self,
        path: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> Result<(), CpioError> {
        self.enter(path)?;
        if self.directories.contains(path) || !self.others.insert(path.to_owned()) {
            return Err(CpioError::Duplicate(path.to_owned()));
        }
        self.entry(&Header {
            name: path,
            mode,
            links: 1,
            device,
            content,
        })
    }

    /// Checks `path` and adds the directories above it.
    fn enter(&mut self, path: &str) -> Result<(), CpioError> {
        let sound = path.len() < MAX_PATH_BYTES
            && !path.contains('\0')
            && path != "TRAILER!!!"
            && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !sound {
            return Err(CpioError::Path(path.to_owned()));
        }
        match path.rsplit_once('/') {
            Some((parent, _)) if !self.directories.contains(parent) => {
                self.directory(parent, 0o755)
            }
            _ => Ok(()),
        }
    }

    fn entry(&mut self, header: &Header<'_>) -> Result<(), CpioError> {
        let size = u32::try_from(header.content.len()).map_err(|_| CpioError::TooLarge {
            path: header.name.to_owned(),
            bytes: header.content.len(),
        })?;
        let (major, minor) = header.device;
        let name_bytes = header.name.len() + 1;
        let (inode, mode, links) = (self.entries, header.mode, header.links);
        self.entries = self.entries.wrapping_add(1);
        // Magic, inode, mode, owner, group, links, time, size, device, device of the node, length of
        // the name, checksum.
        write!(
            self.out,
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{links:08x}{0:08x}{size:08x}{0:08x}{0:08x}\
             {major:08x}{minor:08x}{name_bytes:08x}{0:08x}{1}\0",
            0, header.name
        )?;
        self.pad(HEADER_BYTES + name_bytes)?;
        self.out.write_all(header.content)?;
        self.pad(header.content.len())
    }

    /// Fills up to a multiple of four behind `written` bytes.
    fn pad(&mut self, written: usize) -> Result<(), CpioError> {
        let missing = written.wrapping_neg() % 4;
        Ok(self
            .out
            .write_all([0; 4].get(..missing).unwrap_or_default())?)
    }
}

const HEADER_BYTES: usize = 110;

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.file("init", 0o755, b"hello").unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.directory("tmp", 0o1777).unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn header_follows_the_format() {
        let bytes = sample();

        let first = "070701\
            00000000000081ed000000000000000000000001000000000000000500000000\
            000000000000000000000000000000050000000\
            0init\0\0";
        assert_eq!(
            String::from_utf8_lossy(&bytes[..first.len()]),
            String::from_utf8_lossy(first.as_bytes())
        );
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_same_calls_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn directories_above_an_entry_come_first_and_once() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a/b/one", 0o644, b"").unwrap();
        archive.file("a/b/two", 0o644, b"").unwrap();

        let entries = archive.entries;

        assert_eq!(entries, 4);
    }

    #[test]
    fn paths_that_leave_the_archive_are_refused() {
        let long = "x".repeat(MAX_PATH_BYTES);
        for path in ["", "/etc", "a//b", "../a", "a/.", "a\0b", "a/", &long] {
            let mut archive = Archive::new(Vec::new());
            assert!(
                matches!(archive.file(path, 0o644, b""), Err(CpioError::Path(_))),
                "{path:?}"
            );
        }
    }

    #[test]
    fn a_path_given_twice_is_refused() {
        let mut archive = Archive::new(Vec::new());
        archive.file("a", 0o644, b"").unwrap();

        assert!(matches!(
            archive.file("a", 0o644, b""),
            Err(CpioError::Duplicate(_))
        ));
        assert!(matches!(
            archive.file("a/b", 0o644, b""),
            Err(CpioError::Duplicate(_))
        ));
    }

    #[test]
    fn busybox_cpio_reads_the_archive() {
        let mut busybox = Command::new("busybox")
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("busybox is needed: apt-get install busybox-static");

        busybox.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = busybox.wait_with_output().unwrap();

        assert_eq!(output.stdout, b"init\nbin\nbin/sh\ntmp\n");
    }
}
