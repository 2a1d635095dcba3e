//! How a directory is shared.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use serde::{Deserialize, Serialize};

/// Bytes of a tag.
pub(super) const TAG: usize = 36;
/// Most request queues.
pub(super) const MAX_QUEUES: u16 = 8;

/// How a directory is shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsOptions {
    /// The name under which the guest mounts it: 1 to 36 bytes without NUL.
    pub tag: String,
    /// Whether the guest may change nothing.
    pub read_only: bool,
    /// Who owns the files in the guest's eyes.
    pub owners: Owners,
    /// What the guest may remember.
    pub cache: CachePolicy,
    /// Number of request queues, 1 to 8.
    pub queues: u16,
    /// What is not there for the guest.
    #[serde(default)]
    pub filter: Filter,
}

impl FsOptions {
    /// Read and write, mapped owners, automatic caching.
    pub fn new(tag: impl Into<String>) -> Self {
        Self {
            tag: tag.into(),
            read_only: false,
            owners: Owners::Mapped,
            cache: CachePolicy::Auto,
            queues: 1,
            filter: Filter::default(),
        }
    }
}

/// What is not there for the guest: looking it up fails. Names may still be listed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    /// Only what every user of the host may read is there: files with the `r` of others, directories with their `x`; no
    /// sockets, pipes and devices.
    pub public_only: bool,
    /// These are not there, and so nothing below them.
    pub hidden: Vec<FileId>,
}

/// Which file it is, by whatever name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file at `path`, or the link itself; `None` where there is none.
    pub fn at(path: &Path) -> Option<Self> {
        rustix::fs::lstat(path).ok().map(|stat| Self::of(&stat))
    }

    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }

    pub(super) fn device(self) -> u64 {
        self.device
    }
}

impl Filter {
    /// The files at these paths, those that exist, and perhaps all that is not public.
    pub fn new(public_only: bool, hidden: &[PathBuf]) -> Self {
        Self {
            public_only,
            hidden: hidden.iter().filter_map(|path| FileId::at(path)).collect(),
        }
    }

    pub(super) fn hides(&self, stat: &Stat) -> bool {
        (self.public_only && !is_public(stat)) || self.hidden.contains(&FileId::of(stat))
    }
}

fn is_public(stat: &Stat) -> bool {
    let others = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Mode::ROTH,
        FileType::Directory => Mode::XOTH,
        FileType::Symlink => return true,
        _ => return false,
    };
    Mode::from_raw_mode(stat.st_mode).contains(others)
}

/// Who owns the files in the guest's eyes, and on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Owners {
    /// The guest's root is the user that runs this program: what belongs to it belongs to root in the guest, what others
    /// own belongs to 65534 (nobody). All that the guest makes belongs to this user on the host; giving a file to anybody
    /// but root fails. For everybody.
    #[default]
    Mapped,
    /// Everything belongs to one user of the guest, and to the user that runs this program on the host. Changes of the
    /// owner are accepted and forgotten. For everybody.
    Squash {
        /// The guest's user.
        uid: u32,
        /// The guest's group.
        gid: u32,
    },
    /// Numbers are the same on both sides. Needs root on the host.
    Passthrough,
}

/// What the guest may remember, and so how soon it sees what the host changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum CachePolicy {
    /// Names and attributes are asked for each time; a file's content is looked at anew whenever it is opened, or has
    /// visibly changed.
    Never,
    /// As `Never`, but for up to one second it is not asked again.
    #[default]
    Auto,
    /// The guest alone uses the directory: it remembers everything, and writes when it likes. Changes of the host may
    /// never be seen.
    Always,
}

impl CachePolicy {
    pub(super) fn validity(self) -> Duration {
        match self {
            Self::Never => Duration::ZERO,
            Self::Auto => Duration::from_secs(1),
            Self::Always => Duration::from_secs(86_400),
        }
    }
}

/// Why a directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The directory does not exist.
    #[error("the shared directory {} does not exist", .0.display())]
    Missing(PathBuf),
    /// It is a file or something else.
    #[error("{} is not a directory, and only directories can be shared", .0.display())]
    NotADirectory(PathBuf),
    /// This user may not enter it.
    #[error("no permission to open the shared directory {}; change its mode", .0.display())]
    Permission(PathBuf),
    /// The tag is empty, too long, or has a NUL.
    #[error("the tag {0:?} is not 1 to 36 bytes without NUL")]
    Tag(String),
    /// Too many queues, or none.
    #[error("a share has 1 to 8 request queues, not {0}")]
    Queues(u16),
    /// Another failure of the host.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl FsOptions {
    pub(super) fn check(&self) -> Result<(), FsError> {
        let tag = self.tag.as_bytes();
        if tag.is_empty() || tag.len() > TAG || tag.contains(&0) {
            return Err(FsError::Tag(self.tag.clone()));
        }
        if !(1..=MAX_QUEUES).contains(&self.queues) {
            return Err(FsError::Queues(self.queues));
        }
        Ok(())
    }

    /// The configuration space: tag and number of request queues.
    pub(super) fn config_space(&self) -> Vec<u8> {
        let mut bytes = self.tag.clone().into_bytes();
        bytes.resize(TAG, 0);
        bytes.extend(u32::from(self.queues).to_le_bytes());
        bytes
    }

    /// Opens the directory to share. The descriptor may be handed to another process.
    ///
    /// # Errors
    /// There is no such directory, or it cannot be opened.
    pub fn open_directory(path: &Path) -> Result<std::os::fd::OwnedFd, FsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
            let path = path.to_path_buf();
            match errno {
                rustix::io::Errno::NOENT => FsError::Missing(path),
                rustix::io::Errno::NOTDIR => FsError::NotADirectory(path),
                rustix::io::Errno::ACCESS => FsError::Permission(path),
                errno => FsError::Io {
                    doing: "opening the shared directory",
                    source: errno.into(),
                },
            }
        })
    }
}
