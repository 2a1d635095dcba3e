//! Files, for a connection.

mod content;
mod entries;

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use capsa_agent_protocol::files::{Changes, FileRequest};
use capsa_agent_protocol::{ByteString, Failure, FailureKind, Reply, Timestamp};
use rustix::fs::{
    AtFlags, CWD, Gid, Mode, RenameFlags, Timespec, Timestamps, UTIME_OMIT, Uid, chownat,
    renameat_with, utimensat,
};

use crate::serve::Connection;

/// Does it, and answers.
pub(crate) fn serve(mut connection: Connection, request: FileRequest) -> io::Result<()> {
    match request {
        FileRequest::Read {
            path,
            offset,
            length,
        } => content::read(connection, &path, offset, length),
        FileRequest::Write(request) => content::write(connection, &request),
        FileRequest::CopyOut { path, follow } => {
            content::copy_out(connection, &absolute(&path), follow)
        }
        FileRequest::CopyIn { path, options } => {
            content::copy_in(connection, &absolute(&path), options)
        }
        FileRequest::List { path } => entries::list(connection, &absolute(&path)),
        other => {
            let reply = answer(other).unwrap_or_else(Reply::Failed);
            connection.reply(&reply)
        }
    }
}

fn answer(request: FileRequest) -> Result<Reply, Failure> {
    match request {
        FileRequest::Stat { path, follow } => {
            let stat = entries::metadata(&absolute(&path), follow).map_err(at(&path))?;
            return Ok(Reply::Metadata(stat));
        }
        FileRequest::MakeDirectory {
            path,
            parents,
            mode,
        } => make_directory(&absolute(&path), parents, mode).map_err(at(&path))?,
        FileRequest::Remove { path, recursive } => {
            remove(&absolute(&path), recursive).map_err(at(&path))?;
        }
        FileRequest::Rename { from, to, replace } => {
            let flags = if replace {
                RenameFlags::empty()
            } else {
                RenameFlags::NOREPLACE
            };
            renameat_with(CWD, absolute(&from), CWD, absolute(&to), flags)
                .map_err(|error| at(&to)(error.into()))?;
        }
        FileRequest::Change {
            path,
            follow,
            changes,
        } => change(&absolute(&path), follow, &changes).map_err(at(&path))?,
        FileRequest::Symlink { path, target } => {
            std::os::unix::fs::symlink(target.as_path(), absolute(&path)).map_err(at(&path))?;
        }
        FileRequest::HardLink { path, original } => {
            fs::hard_link(absolute(&original), absolute(&path)).map_err(at(&path))?;
        }
        FileRequest::ReadLink { path } => {
            let target = fs::read_link(absolute(&path)).map_err(at(&path))?;
            return Ok(Reply::Path(target.into()));
        }
        FileRequest::Canonicalize { path } => {
            let real = fs::canonicalize(absolute(&path)).map_err(at(&path))?;
            return Ok(Reply::Path(real.into()));
        }
        FileRequest::Read { .. }
        | FileRequest::Write(_)
        | FileRequest::List { .. }
        | FileRequest::CopyOut { .. }
        | FileRequest::CopyIn { .. } => {
            return Err(Failure::new(FailureKind::Invalid, "this is no question"));
        }
    }
    Ok(Reply::Done)
}

/// Relative paths are taken from `/`.
fn absolute(path: &ByteString) -> PathBuf {
    Path::new("/").join(path.as_path())
}

fn at(path: &ByteString) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::system(&error, path.display().to_string())
}

fn make_directory(path: &Path, parents: bool, mode: u32) -> io::Result<()> {
    let made = if parents {
        match fs::metadata(path) {
            Ok(there) if there.is_dir() => return Ok(()),
            _ => {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                fs::create_dir(path)
            }
        }
    } else {
        fs::create_dir(path)
    };
    match made {
        Err(error) if parents && error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            Ok(())
        }
        Err(error) => Err(error),
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777)),
    }
}

/// The standard library's removal of trees works on descriptors and follows no link.
fn remove(path: &Path, recursive: bool) -> io::Result<()> {
    let is_directory = fs::symlink_metadata(path)?.is_dir();
    match (is_directory, recursive) {
        (true, true) => fs::remove_dir_all(path),
        (true, false) => fs::remove_dir(path),
        (false, _) => fs::remove_file(path),
    }
}

fn change(path: &Path, follow: bool, changes: &Changes) -> io::Result<()> {
    let flags = if follow {
        AtFlags::empty()
    } else {
        AtFlags::SYMLINK_NOFOLLOW
    };
    if let Some(length) = changes.length {
        fs::File::options()
            .write(true)
            .open(path)?
            .set_len(length)?;
    }
    // The owner comes first: changing it takes set-id bits.
    if changes.user.is_some() || changes.group.is_some() {
        let user = changes.user.map(Uid::from_raw);
        let group = changes.group.map(Gid::from_raw);
        chownat(CWD, path, user, group, flags)?;
    }
    if let Some(mode) = changes.mode {
        if !follow && fs::symlink_metadata(path)?.is_symlink() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        rustix::fs::chmod(path, Mode::from_raw_mode(mode & 0o7777))?;
    }
    if changes.accessed.is_some() || changes.modified.is_some() {
        let times = Timestamps {
            last_access: time(changes.accessed),
            last_modification: time(changes.modified),
        };
        utimensat(CWD, path, &times, flags)?;
    }
    Ok(())
}

fn time(time: Option<Timestamp>) -> Timespec {
    match time {
        Some(time) => Timespec {
            tv_sec: time.seconds,
            tv_nsec: time.nanoseconds.min(999_999_999).into(),
        },
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
    }
}
