//! A file or directory with all it holds, as frames: how trees are copied in and out.
//!
//! It is a walk: [`TreeItem::Directory`] enters, [`TreeItem::Leave`] leaves, and every name is that of
//! one entry of the directory that was entered last. So nothing in it is a path, and [`Extractor`],
//! which works on directory descriptors and never follows a link, cannot be led out of its place. The
//! content of a [`TreeItem::File`] follows as data frames and an end. The last is
//! [`TreeItem::Finished`].

mod attributes;
mod extract;
mod pack;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use extract::Extractor;
pub use pack::{Sink, pack};

use crate::{ByteString, Failure, Timestamp, TreeSummary};

/// Deeper trees are not copied: each level takes a descriptor on both sides.
pub const MAX_DEPTH: usize = 256;

/// One step of the walk. The root has an empty name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TreeItem {
    /// A directory, which is entered.
    Directory {
        /// Its name.
        name: ByteString,
        /// What it is.
        attributes: Attributes,
    },
    /// Back to the directory that it is in.
    Leave,
    /// A file, whose content follows.
    File {
        /// Its name.
        name: ByteString,
        /// What it is.
        attributes: Attributes,
    },
    /// A symbolic link.
    Symlink {
        /// Its name.
        name: ByteString,
        /// Where it points to.
        target: ByteString,
        /// What it is.
        attributes: Attributes,
    },
    /// Another name of a file that came before.
    HardLink {
        /// Its name.
        name: ByteString,
        /// The names that lead to the file, from the root.
        original: Vec<ByteString>,
    },
    /// A named pipe.
    Fifo {
        /// Its name.
        name: ByteString,
        /// What it is.
        attributes: Attributes,
    },
    /// That was all.
    Finished(TreeSummary),
    /// The rest cannot be read.
    Failed(Failure),
}

/// What a file is, beside its kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits, set-id bits and the sticky bit.
    pub mode: u32,
    /// The owner's number.
    pub user: u32,
    /// The group's number.
    pub group: u32,
    /// Time of the last change of the content.
    pub modified: Timestamp,
}
