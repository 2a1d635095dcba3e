//! Writing a tree.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, linkat, mkdirat, openat, symlinkat, unlinkat};
use rustix::io::Errno;

use super::{Attributes, MAX_DEPTH, TreeItem};
use crate::files::ExtractOptions;
use crate::frame::{self, Kind};
use crate::{ByteString, ProtocolError, TreeSummary};

/// Writes a tree from its frames. Whatever they say, nothing outside of its place is made, changed
/// or read: names are single names, and links are never followed.
///
/// Directories that are there already are kept, with their attributes.
pub struct Extractor {
    options: ExtractOptions,
    /// Where the root goes, and its name there.
    place: OwnedFd,
    name: ByteString,
    levels: Vec<Level>,
    file: Option<(OwnedFd, Attributes)>,
    root_is_made: bool,
    summary: TreeSummary,
    finished: bool,
}

/// A directory of the walk; with attributes, where it was made.
struct Level {
    name: ByteString,
    directory: OwnedFd,
    attributes: Option<Attributes>,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Extractor {
    /// The tree's root becomes `path`, whose parent must be there unless the options make it. The
    /// path itself is trusted: links on the way to it are followed.
    ///
    /// # Errors
    /// Why the parent cannot be used.
    pub fn new(path: &Path, options: ExtractOptions) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput);
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        if options.parents {
            std::fs::create_dir_all(parent)?;
        }
        let (parent, name) = match name {
            Ok(name) => (parent, ByteString::from(name)),
            // `/`, or something that ends in `..`: a directory that is there.
            Err(_) => (path, ByteString::default()),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            options,
            place: rustix::fs::open(parent, flags, Mode::empty())?,
            name,
            levels: Vec::new(),
            file: None,
            root_is_made: false,
            summary: TreeSummary::default(),
            finished: false,
        })
    }

    /// Takes the next frame; gives what there was in the tree after the last one.
    ///
    /// # Errors
    /// The operating system's, with the place in the tree, and [`ProtocolError`] as
    /// [`io::ErrorKind::InvalidData`] for frames that make no tree.
    pub fn take(&mut self, kind: Kind, content: &[u8]) -> io::Result<Option<TreeSummary>> {
        if self.finished {
            return Err(ProtocolError::Unexpected("more behind a tree").into());
        }
        match (kind, &mut self.file) {
            (Kind::Data, Some((file, _))) => {
                write_all(file, content).map_err(|error| self.at(None, error))?;
                self.summary.bytes += content.len() as u64;
                Ok(None)
            }
            (Kind::End, file @ Some(_)) => {
                if let Some((file, attributes)) = file.take() {
                    attributes
                        .apply(&file, &self.options)
                        .map_err(|error| self.at(None, error))?;
                }
                Ok(None)
            }
            (Kind::Message, None) => self.item(frame::decode(content)?),
            _ => Err(ProtocolError::Unexpected("this frame in a tree").into()),
        }
    }

    fn item(&mut self, item: TreeItem) -> io::Result<Option<TreeSummary>> {
        match item {
            TreeItem::Finished(theirs) if self.levels.is_empty() => {
                self.finished = true;
                self.summary.skipped = self.summary.skipped.saturating_add(theirs.skipped);
                Ok(Some(self.summary))
            }
            TreeItem::Finished(_) => {
                Err(ProtocolError::Unexpected("the end of a tree in a directory").into())
            }
            TreeItem::Failed(failure) => Err(io::Error::other(failure)),
            TreeItem::Leave => self.leave().map(|()| None),
            TreeItem::Directory { name, attributes } => self.entry(name, |this, name| {
                this.summary.directories += 1;
                this.directory(name, attributes)
            }),
            TreeItem::File { name, attributes } => self.entry(name, |this, name| {
                this.summary.files += 1;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = this.replacing(name, |directory, name| {
                    openat(directory, name, flags, Mode::from_raw_mode(0o600))
                })?;
                this.file = Some((file, attributes));
                Ok(())
            }),
            TreeItem::Symlink {
                name,
                target,
                attributes,
            } => self.entry(name, |this, name| {
                this.summary.others += 1;
                this.replacing(name, |directory, name| {
                    symlinkat(target.as_path(), directory, name)
                })?;
                attributes.apply_at(this.here(), name, &this.options)
            }),
            TreeItem::HardLink { name, original } => self.entry(name, |this, name| {
                this.summary.others += 1;
                let (original, last) = this.find(&original)?;
                this.replacing(name, |directory, name| {
                    linkat(&original, last.as_path(), directory, name, AtFlags::empty())
                })
            }),
            TreeItem::Fifo { name, attributes } => {
                self.entry(name, |this, name| this.fifo(name, attributes))
            }
        }
    }

    /// Does one entry under its own name, or, for the root, under that of the place.
    fn entry(
        &mut self,
        name: ByteString,
        make: impl FnOnce(&mut Self, &Path) -> rustix::io::Result<()>,
    ) -> io::Result<Option<TreeSummary>> {
        let name = if self.levels.is_empty() {
            if std::mem::replace(&mut self.root_is_made, true) || !name.0.is_empty() {
                return Err(ProtocolError::Unexpected("a second root of a tree").into());
            }
            self.name.clone()
        } else {
            check_name(&name)?;
            name
        };
        match make(self, Path::new(OsStr::from_bytes(&name.0))) {
            Ok(()) => Ok(None),
            Err(error) => Err(self.at(Some(&name), error)),
        }
    }

    /// The directory that was entered last.
    fn here(&self) -> BorrowedFd<'_> {
        self.levels
            .last()
            .map_or(self.place.as_fd(), |level| level.directory.as_fd())
    }

    /// Makes something, in the place of what is there where that may be.
    fn replacing<T>(
        &self,
        name: &Path,
        make: impl Fn(BorrowedFd<'_>, &Path) -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match make(self.here(), name) {
            Err(Errno::EXIST) if self.options.replace => {
                // A directory is not replaced: unlinkat refuses it.
                unlinkat(self.here(), name, AtFlags::empty())?;
                make(self.here(), name)
            }
            other => other,
        }
    }

    fn directory(&mut self, name: &Path, attributes: Attributes) -> rustix::io::Result<()> {
        if self.levels.len() >= MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        let mode = Mode::from_raw_mode(0o700);
        let made = if name == Path::new("") {
            Err(Errno::EXIST)
        } else {
            mkdirat(self.here(), name, mode)
        };
        let is_new = match made {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error),
        };
        let at = if name == Path::new("") {
            Path::new(".")
        } else {
            name
        };
        let (directory, is_new) = match openat(self.here(), at, DIRECTORY, Mode::empty()) {
            Ok(directory) => (directory, is_new),
            // Something else of that name is there.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::MLINK) if self.options.replace => {
                unlinkat(self.here(), name, AtFlags::empty())?;
                mkdirat(self.here(), name, mode)?;
                (openat(self.here(), name, DIRECTORY, Mode::empty())?, true)
            }
            Err(error) => return Err(error),
        };
        self.levels.push(Level {
            name: ByteString::from(name),
            directory,
            attributes: is_new.then_some(attributes),
        });
        Ok(())
    }

    fn leave(&mut self) -> io::Result<()> {
        let Some(level) = self.levels.pop() else {
            return Err(ProtocolError::Unexpected("leaving the root of a tree").into());
        };
        match level.attributes {
            // Only now: what was made in it changed its time, and may have needed its mode.
            Some(attributes) => attributes
                .apply(&level.directory, &self.options)
                .map_err(|error| self.at(Some(&level.name), error)),
            None => Ok(()),
        }
    }

    /// The directory in which an earlier file of this tree is, and its name there.
    fn find(&self, names: &[ByteString]) -> rustix::io::Result<(OwnedFd, ByteString)> {
        let (last, parents) = names.split_last().ok_or(Errno::INVAL)?;
        check_name(last).map_err(|_| Errno::INVAL)?;
        let root = self.levels.first().ok_or(Errno::INVAL)?;
        let mut directory = root.directory.try_clone().map_err(|_| Errno::MFILE)?;
        for name in parents {
            check_name(name).map_err(|_| Errno::INVAL)?;
            directory = openat(&directory, name.as_path(), DIRECTORY, Mode::empty())?;
        }
        Ok((directory, last.clone()))
    }

    #[cfg(target_os = "linux")]
    fn fifo(&mut self, name: &Path, attributes: Attributes) -> rustix::io::Result<()> {
        self.summary.others += 1;
        let mode = attributes.creation_mode(&self.options);
        self.replacing(name, |directory, name| {
            rustix::fs::mknodat(directory, name, rustix::fs::FileType::Fifo, mode, 0)
        })?;
        attributes.apply_at(self.here(), name, &self.options)
    }

    /// Named pipes are left out where they cannot be made in a directory by its descriptor.
    #[cfg(not(target_os = "linux"))]
    fn fifo(&mut self, _name: &Path, _attributes: Attributes) -> rustix::io::Result<()> {
        self.summary.skipped += 1;
        Ok(())
    }

    /// Says where in the tree an error was.
    fn at(&self, name: Option<&ByteString>, error: Errno) -> io::Error {
        let mut place = String::new();
        for name in self.levels.iter().map(|level| &level.name).chain(name) {
            place.push('/');
            place.push_str(&name.display().to_string());
        }
        TreeError {
            place,
            source: error,
        }
        .into()
    }
}

/// The operating system's error, and where in a tree it was.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {source}")]
struct TreeError {
    place: String,
    source: Errno,
}

impl From<TreeError> for io::Error {
    fn from(error: TreeError) -> Self {
        Self::new(io::Error::from(error.source).kind(), error)
    }
}

fn check_name(name: &ByteString) -> Result<(), ProtocolError> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(ProtocolError::Unexpected("an empty name in a tree")),
        name if name.contains(&b'/') || name.contains(&0) => {
            Err(ProtocolError::Unexpected("a path in the place of a name"))
        }
        _ => Ok(()),
    }
}

fn write_all(file: &OwnedFd, mut content: &[u8]) -> rustix::io::Result<()> {
    while !content.is_empty() {
        match rustix::io::write(file, content) {
            Ok(count) => content = content.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
