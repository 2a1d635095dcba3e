//! What files are, and what directories hold.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use capsa_agent_protocol::files::{Entry, FileKind, Metadata};
use capsa_agent_protocol::{ByteString, Failure, Reply, Timestamp};

use crate::serve::Connection;

/// About so long a message of entries becomes, in bytes.
const BATCH_BYTES: usize = 32 << 10;
/// An entry without its name, at most.
const ENTRY_BYTES: usize = 128;

pub(super) fn metadata(path: &Path, follow: bool) -> io::Result<Metadata> {
    let metadata = if follow {
        fs::metadata(path)?
    } else {
        fs::symlink_metadata(path)?
    };
    Ok(converted(&metadata))
}

pub(super) fn list(mut connection: Connection, path: &Path) -> io::Result<()> {
    let failed =
        |error: &io::Error| Reply::Failed(Failure::system(error, path.display().to_string()));
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => return connection.reply(&failed(&error)),
    };
    let mut batch = Vec::new();
    let mut bytes = 0;
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => return connection.reply(&failed(&error)),
        };
        let name = ByteString::from(entry.file_name());
        bytes += ENTRY_BYTES + name.0.len();
        let metadata = entry.metadata().ok().map(|metadata| converted(&metadata));
        batch.push(Entry { name, metadata });
        if bytes >= BATCH_BYTES {
            connection.reply(&Reply::Entries(std::mem::take(&mut batch)))?;
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        connection.reply(&Reply::Entries(batch))?;
    }
    connection.reply(&Reply::Done)
}

fn converted(metadata: &fs::Metadata) -> Metadata {
    let kind = metadata.file_type();
    let time = |seconds, nanoseconds: i64| Timestamp {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    };
    Metadata {
        kind: match () {
            () if kind.is_file() => FileKind::File,
            () if kind.is_dir() => FileKind::Directory,
            () if kind.is_symlink() => FileKind::Symlink,
            () if kind.is_fifo() => FileKind::Fifo,
            () if kind.is_socket() => FileKind::Socket,
            () if kind.is_char_device() => FileKind::CharacterDevice,
            () if kind.is_block_device() => FileKind::BlockDevice,
            () => FileKind::Other,
        },
        length: metadata.len(),
        mode: metadata.mode() & 0o7777,
        user: metadata.uid(),
        group: metadata.gid(),
        links: metadata.nlink(),
        inode: metadata.ino(),
        device: metadata.dev(),
        accessed: time(metadata.atime(), metadata.atime_nsec()),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        changed: time(metadata.ctime(), metadata.ctime_nsec()),
    }
}
