//! Reading a tree.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use super::attributes::attributes;
use super::{MAX_DEPTH, TreeItem};
use crate::frame::{self, Kind, MAX_DATA_BYTES};
use crate::{ByteString, Failure, TreeSummary};

/// Takes the frames of a tree.
pub trait Sink {
    /// Takes one, head and all. An error ends the walk.
    ///
    /// # Errors
    /// Where it has no use for more.
    fn frame(&mut self, frame: &[u8]) -> io::Result<()>;
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Sink for F {
    fn frame(&mut self, frame: &[u8]) -> io::Result<()> {
        self(frame)
    }
}

/// Reads the tree at `path` to its end. Links in it are told, not followed; a link at the end of
/// `path` is followed where `follow` says so. What cannot be read is told as [`TreeItem::Failed`].
///
/// # Errors
/// Those of `sink`.
pub fn pack(path: &Path, follow: bool, sink: &mut dyn Sink) -> io::Result<()> {
    let mut packer = Packer {
        sink,
        names: Vec::new(),
        first_names: HashMap::new(),
        summary: TreeSummary::default(),
        content: Vec::new(),
    };
    match packer.root(path, follow) {
        Ok(()) => {
            let summary = packer.summary;
            packer.item(&TreeItem::Finished(summary))
        }
        Err(Stop::Sink(error)) => Err(error),
        Err(Stop::Tree(error)) => {
            let mut place = path.to_owned();
            place.extend(packer.names.iter().map(ByteString::as_path));
            let context = place.display().to_string();
            packer.item(&TreeItem::Failed(Failure::system(&error, context)))
        }
    }
}

/// Why a walk ended early.
enum Stop {
    Sink(io::Error),
    Tree(io::Error),
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Tree(error.into())
    }
}

struct Packer<'a> {
    sink: &'a mut dyn Sink,
    /// From the root to the entry at hand.
    names: Vec<ByteString>,
    /// Device and number of each file with several names, and the names that lead to the first one.
    first_names: HashMap<(u64, u64), Vec<ByteString>>,
    summary: TreeSummary,
    content: Vec<u8>,
}

/// A directory of the walk.
struct Level {
    directory: OwnedFd,
    names: Vec<CString>,
}

impl Packer<'_> {
    fn item(&mut self, item: &TreeItem) -> io::Result<()> {
        let frame = frame::message(item)?;
        self.sink.frame(&frame)
    }

    fn send(&mut self, item: &TreeItem) -> Result<(), Stop> {
        self.item(item).map_err(Stop::Sink)
    }

    fn root(&mut self, path: &Path, follow: bool) -> Result<(), Stop> {
        let here = rustix::fs::CWD;
        let path = if follow {
            std::fs::canonicalize(path).map_err(Stop::Tree)?
        } else {
            path.to_owned()
        };
        let stat = statat(here, &path, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut levels = Vec::new();
        let root = ByteString::default();
        let path = CString::new(path.into_os_string().into_encoded_bytes())
            .map_err(|error| Stop::Tree(error.into()))?;
        levels.extend(self.entry(here, &path, root, &stat)?);
        self.walk(levels)
    }

    fn walk(&mut self, mut levels: Vec<Level>) -> Result<(), Stop> {
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                self.names.pop();
                self.send(&TreeItem::Leave)?;
                continue;
            };
            let shown = ByteString::from(name.to_bytes());
            self.names.push(shown.clone());
            let directory = level.directory.as_fd();
            let entered = match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.entry(directory, &name, shown, &stat)?,
                Err(Errno::NOENT) => {
                    self.summary.skipped += 1;
                    None
                }
                Err(error) => return Err(error.into()),
            };
            match entered {
                // The name goes when the directory is left.
                Some(_) if levels.len() >= MAX_DEPTH => return Err(Errno::NAMETOOLONG.into()),
                Some(level) => levels.push(level),
                None => {
                    self.names.pop();
                }
            }
        }
        Ok(())
    }

    /// Tells one entry; gives what a directory holds.
    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        shown: ByteString,
        stat: &Stat,
    ) -> Result<Option<Level>, Stop> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return self.directory(directory, name, shown).map(Some),
            FileType::RegularFile => self.file(directory, name, shown, stat)?,
            FileType::Symlink => {
                let target = readlinkat(directory, name, Vec::new())?;
                self.summary.others += 1;
                self.send(&TreeItem::Symlink {
                    name: shown,
                    target: target.into_bytes().into(),
                    attributes: attributes(stat),
                })?;
            }
            FileType::Fifo => {
                self.summary.others += 1;
                self.send(&TreeItem::Fifo {
                    name: shown,
                    attributes: attributes(stat),
                })?;
            }
            _ => self.summary.skipped += 1,
        }
        Ok(None)
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        shown: ByteString,
    ) -> Result<Level, Stop> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(parent, name, flags, Mode::empty())?;
        let attributes = attributes(&fstat(&directory)?);
        self.summary.directories += 1;
        self.send(&TreeItem::Directory {
            name: shown,
            attributes,
        })?;
        let mut names = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        // Taken from the end.
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { directory, names })
    }

    fn file(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        shown: ByteString,
        stat: &Stat,
    ) -> Result<(), Stop> {
        #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
        let number = (stat.st_dev as u64, stat.st_ino as u64);
        if stat.st_nlink > 1 {
            if let Some(original) = self.first_names.get(&number) {
                let original = original.clone();
                self.summary.others += 1;
                return self.send(&TreeItem::HardLink {
                    name: shown,
                    original,
                });
            }
            self.first_names.insert(number, self.names.clone());
        }
        // A pipe that took the file's place must not hold the walk up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(directory, name, flags, Mode::empty())?;
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.summary.skipped += 1;
            return Ok(());
        }
        self.summary.files += 1;
        self.send(&TreeItem::File {
            name: shown,
            attributes: attributes(&stat),
        })?;
        self.content(&file)?;
        self.sink
            .frame(&frame::frame(Kind::End, &[]))
            .map_err(Stop::Sink)
    }

    fn content(&mut self, file: &OwnedFd) -> Result<(), Stop> {
        let size = frame::HEAD_BYTES + MAX_DATA_BYTES;
        self.content.resize(size, 0);
        loop {
            let Some((head, content)) = self.content.split_first_chunk_mut() else {
                return Ok(());
            };
            let length = match rustix::io::read(file, &mut *content) {
                Ok(0) => return Ok(()),
                Ok(length) => length,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let kind = Kind::Data;
            *head = frame::Head { kind, length }.encode();
            self.summary.bytes += length as u64;
            let frame = self.content.get(..frame::HEAD_BYTES + length);
            self.sink
                .frame(frame.unwrap_or_default())
                .map_err(Stop::Sink)?;
        }
    }
}
