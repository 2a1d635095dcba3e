//! Files of the guest. Paths are absolute; relative ones are taken from `/`.

use serde::{Deserialize, Serialize};

use crate::{ByteString, Timestamp};

/// What to do with files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileRequest {
    /// Send a file's content.
    Read {
        /// The file.
        path: ByteString,
        /// Where to begin, in bytes.
        offset: u64,
        /// How many bytes at most; without it, up to the end.
        length: Option<u64>,
    },
    /// Take a file's content.
    Write(WriteRequest),
    /// What a file is.
    Stat {
        /// The file.
        path: ByteString,
        /// Whether a symbolic link at the end of the path is followed.
        follow: bool,
    },
    /// What a directory holds, without `.` and `..`, in no order.
    List {
        /// The directory.
        path: ByteString,
    },
    /// Make a directory.
    MakeDirectory {
        /// The directory.
        path: ByteString,
        /// Whether missing parents are made, and one that is there is fine.
        parents: bool,
        /// Permissions of what is made, whatever the umask.
        mode: u32,
    },
    /// Remove a file, a symbolic link or a directory.
    Remove {
        /// What to remove.
        path: ByteString,
        /// Whether what a directory holds goes with it; links are not followed.
        recursive: bool,
    },
    /// Rename, within one file system.
    Rename {
        /// The old path.
        from: ByteString,
        /// The new path.
        to: ByteString,
        /// Whether something at the new path is replaced.
        replace: bool,
    },
    /// Change what a file is.
    Change {
        /// The file.
        path: ByteString,
        /// Whether a symbolic link at the end of the path is followed. Links have no mode.
        follow: bool,
        /// What to change.
        changes: Changes,
    },
    /// Make a symbolic link.
    Symlink {
        /// The link.
        path: ByteString,
        /// Where it points to.
        target: ByteString,
    },
    /// Make a hard link.
    HardLink {
        /// The new name.
        path: ByteString,
        /// The file that is there.
        original: ByteString,
    },
    /// Where a symbolic link points to: [`Reply::Path`](crate::Reply::Path).
    ReadLink {
        /// The link.
        path: ByteString,
    },
    /// The path without links, `.` and `..`: [`Reply::Path`](crate::Reply::Path).
    Canonicalize {
        /// Any path.
        path: ByteString,
    },
    /// Send a file or a directory with all it holds, as a [tree](crate::tree).
    CopyOut {
        /// The file or directory.
        path: ByteString,
        /// Whether a symbolic link at the end of the path is followed.
        follow: bool,
    },
    /// Take a tree: its root becomes `path`, or goes into it.
    CopyIn {
        /// Where it goes.
        path: ByteString,
        /// How.
        options: ExtractOptions,
    },
}

/// A file to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// The file.
    pub path: ByteString,
    /// Whether it is made where it is missing.
    pub create: bool,
    /// Whether it must be missing.
    pub exclusive: bool,
    /// Whether what it holds goes.
    pub truncate: bool,
    /// Whether everything goes to its end, whatever `offset`.
    pub append: bool,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// Permissions of a file that is made, whatever the umask.
    pub mode: u32,
    /// Whether it is on the disk when the answer comes.
    pub sync: bool,
}

/// What to change of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Permission bits, set-id bits and the sticky bit.
    pub mode: Option<u32>,
    /// The owner's number.
    pub user: Option<u32>,
    /// The group's number.
    pub group: Option<u32>,
    /// Time of the last access.
    pub accessed: Option<Timestamp>,
    /// Time of the last change of the content.
    pub modified: Option<Timestamp>,
    /// Length in bytes: cut off, or filled up with zeros.
    pub length: Option<u64>,
}

/// How a tree is put into a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtractOptions {
    /// Owner and group of everything; without them, whoever extracts, or those of the tree.
    pub owner: Option<(u32, u32)>,
    /// Whether the tree's owners are kept where `owner` gives none. It takes a privileged user.
    pub keep_owners: bool,
    /// Whether set-user-id and set-group-id bits are kept.
    pub keep_set_id: bool,
    /// Whether files that are there are replaced; else they are an error.
    pub replace: bool,
    /// Whether missing parents of the place are made.
    pub parents: bool,
}

impl Default for ExtractOptions {
    /// Everything belongs to whoever extracts, set-id bits go, files that are there are replaced, and
    /// parents must be there.
    fn default() -> Self {
        Self {
            owner: None,
            keep_owners: false,
            keep_set_id: false,
            replace: true,
            parents: false,
        }
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Which kind of file.
    pub kind: FileKind,
    /// Length in bytes.
    pub length: u64,
    /// Permission bits, set-id bits and the sticky bit.
    pub mode: u32,
    /// The owner's number.
    pub user: u32,
    /// The group's number.
    pub group: u32,
    /// How many names it has.
    pub links: u64,
    /// Its number in its file system.
    pub inode: u64,
    /// The number of its file system.
    pub device: u64,
    /// Time of the last access.
    pub accessed: Timestamp,
    /// Time of the last change of the content.
    pub modified: Timestamp,
    /// Time of the last change of the file.
    pub changed: Timestamp,
}

/// Which kind of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A file with content.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// Something else.
    Other,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its name.
    pub name: ByteString,
    /// What it is; links are not followed. `None` for one that was gone when it was looked at.
    pub metadata: Option<Metadata>,
}
