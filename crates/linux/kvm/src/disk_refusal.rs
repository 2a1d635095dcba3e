//! Why a disk has not got another size: told by the monitor, and made an error by the library.

use std::io;

use capsa_core::{Error, MemorySize};
use serde::{Deserialize, Serialize};

/// Why a disk's size was not changed. The guest sees it as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskRefusal {
    /// The machine has only so many disks.
    Absent {
        /// How many there are.
        disks: usize,
    },
    /// The guest may not write it.
    ReadOnly,
    /// It has more than was asked for.
    Smaller {
        /// How many bytes it has.
        present: u64,
    },
    /// The size is not a multiple of 512.
    NotSectors,
    /// It is a block device.
    BlockDevice,
    /// What the host said.
    Host(String),
}

impl DiskRefusal {
    /// The error for whoever asked for `bytes` on disk `index`.
    pub(crate) fn of_growing(self, index: usize, bytes: u64) -> Error {
        let refuse = |reason: String, fix: String| {
            let (setting, value) = (format!("size of disk {index}"), MemorySize::bytes(bytes));
            Error::invalid_setting(setting, value, reason, fix)
        };
        match self {
            Self::ReadOnly => refuse(
                "the disk is read-only".to_owned(),
                "start the VM with DiskAccess::ReadWrite, or make the file itself larger and call \
                 refresh_disk"
                    .to_owned(),
            ),
            Self::Smaller { present } => refuse(
                format!("the disk has {} bytes, and a disk cannot shrink", present),
                "give a larger size".to_owned(),
            ),
            Self::NotSectors => refuse(
                "a size is a multiple of 512 bytes".to_owned(),
                match bytes.checked_next_multiple_of(512) {
                    Some(next) => format!("use {next}"),
                    None => "use less".to_owned(),
                },
            ),
            Self::BlockDevice => refuse(
                "the disk is a block device of the host".to_owned(),
                "make that larger by its own tools, such as lvextend, and call refresh_disk"
                    .to_owned(),
            ),
            other => other.of_refreshing(index),
        }
    }

    /// The error for whoever asked to look at disk `index` again.
    pub(crate) fn of_refreshing(self, index: usize) -> Error {
        match self {
            Self::Absent { disks } => Error::invalid_setting(
                "disk",
                index,
                format!("the VM has {disks}, counted from 0"),
                "use the place in which the disk was added",
            ),
            Self::Host(reason) => Error::io(
                format!("cannot change the size of disk {index}"),
                io::Error::other(reason),
            ),
            // What only a disk that is to grow can be.
            other => Error::InvalidState {
                operation: "look at its disk again",
                state: format!("refused it: {other:?}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_names_the_disk_and_what_to_do() {
        for (refusal, text) in [
            (
                DiskRefusal::Absent { disks: 2 },
                "disk: 3: the VM has 2, counted from 0; use the place in which the disk was added",
            ),
            (
                DiskRefusal::ReadOnly,
                "size of disk 3: 1000 bytes: the disk is read-only; start the VM with \
                 DiskAccess::ReadWrite, or make the file itself larger and call refresh_disk",
            ),
            (
                DiskRefusal::Smaller { present: 4096 },
                "size of disk 3: 1000 bytes: the disk has 4096 bytes, and a disk cannot shrink; \
                 give a larger size",
            ),
            (
                DiskRefusal::NotSectors,
                "size of disk 3: 1000 bytes: a size is a multiple of 512 bytes; use 1024",
            ),
            (
                DiskRefusal::BlockDevice,
                "size of disk 3: 1000 bytes: the disk is a block device of the host; make that \
                 larger by its own tools, such as lvextend, and call refresh_disk",
            ),
            (
                DiskRefusal::Host("No space left on device".to_owned()),
                "cannot change the size of disk 3: No space left on device",
            ),
        ] {
            assert_eq!(refusal.of_growing(3, 1000).to_string(), text);
        }
    }
}
