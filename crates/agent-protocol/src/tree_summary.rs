use serde::{Deserialize, Serialize};

/// What a tree held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeSummary {
    /// Directories, the root included.
    pub directories: u64,
    /// Files with content.
    pub files: u64,
    /// Symbolic links, hard links beyond the first name, named pipes.
    pub others: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// Sockets and devices, which are not copied, and files that were gone when they were reached.
    pub skipped: u64,
}
