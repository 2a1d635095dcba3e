//! Between the operating system's words and the protocol's.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Gid, Mode, RawMode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, fchmod,
    fchown, futimens, utimensat,
};
use rustix::io::Result;

use super::Attributes;
use crate::Timestamp;
use crate::files::ExtractOptions;

const PERMISSIONS: u32 = 0o7777;
const SET_ID: u32 = 0o6000;

// The fields' types differ between systems.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
pub(super) fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: u32::from(stat.st_mode) & PERMISSIONS,
        user: stat.st_uid,
        group: stat.st_gid,
        modified: Timestamp {
            seconds: stat.st_mtime as i64,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
    }
}

impl Attributes {
    fn mode(&self, options: &ExtractOptions) -> Mode {
        let kept = if options.keep_set_id { 0 } else { SET_ID };
        let mode = self.mode & PERMISSIONS & !kept;
        RawMode::try_from(mode).map_or(Mode::empty(), Mode::from_raw_mode)
    }

    fn owner(&self, options: &ExtractOptions) -> Option<(Uid, Gid)> {
        let kept = options.keep_owners.then_some((self.user, self.group));
        let (user, group) = options.owner.or(kept)?;
        Some((Uid::from_raw(user), Gid::from_raw(group)))
    }

    fn times(&self) -> Timestamps {
        Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT as _,
            },
            last_modification: Timespec {
                tv_sec: self.modified.seconds,
                // More is no time, and refused by the system.
                tv_nsec: self.modified.nanoseconds.min(999_999_999).into(),
            },
        }
    }

    /// Gives an open file or directory these. The owner comes first: changing it takes set-id bits.
    pub(super) fn apply(&self, file: impl AsFd, options: &ExtractOptions) -> Result<()> {
        let file = file.as_fd();
        if let Some((user, group)) = self.owner(options) {
            fchown(file, Some(user), Some(group))?;
        }
        fchmod(file, self.mode(options))?;
        futimens(file, &self.times())
    }

    /// Gives a symbolic link or a named pipe of `directory` these, which has no use of a mode here.
    pub(super) fn apply_at(
        &self,
        directory: BorrowedFd<'_>,
        name: &Path,
        options: &ExtractOptions,
    ) -> Result<()> {
        if let Some((user, group)) = self.owner(options) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(directory, name, Some(user), Some(group), flags)?;
        }
        utimensat(directory, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)
    }

    #[cfg(target_os = "linux")]
    pub(super) fn creation_mode(&self, options: &ExtractOptions) -> Mode {
        self.mode(options)
    }
}
