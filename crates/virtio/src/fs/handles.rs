//! Files and directories that the guest has open.

use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

/// Most at once.
const MAX_HANDLES: usize = 100_000;

/// An open file or directory.
pub(super) struct Handle {
    /// The node that was opened: a handle is good for no other.
    pub(super) node: u64,
    pub(super) file: OwnedFd,
    pub(super) flags: OFlags,
    /// How far a directory was read.
    pub(super) listing: Mutex<Listing>,
}

/// A place in a directory.
#[derive(Default)]
pub(super) struct Listing {
    /// Where the guest reads on if it goes on.
    pub(super) next: u64,
    /// Taken from the host already, and not given to the guest.
    pub(super) ahead: VecDeque<Entry>,
}

/// An entry of a directory.
pub(super) struct Entry {
    pub(super) name: CString,
    pub(super) inode: u64,
    /// Whether it is the directory itself or the one above.
    pub(super) dots: bool,
    pub(super) kind: FileType,
    /// Where the entries behind it begin.
    pub(super) next: u64,
}

#[derive(Default)]
pub(super) struct Handles(Mutex<Table>);

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<Handle>>,
    last: u64,
}

impl Handles {
    pub(super) fn add(&self, node: u64, file: OwnedFd, flags: OFlags) -> Result<u64, Errno> {
        let mut table = self.table();
        if table.open.len() >= MAX_HANDLES {
            return Err(Errno::NFILE);
        }
        table.last += 1;
        let number = table.last;
        table.open.insert(number, handle(node, file, flags));
        Ok(number)
    }

    /// Takes a handle over under the number that it had.
    pub(super) fn restore(&self, number: u64, node: u64, file: OwnedFd, flags: OFlags) {
        let mut table = self.table();
        table.last = table.last.max(number);
        table.open.insert(number, handle(node, file, flags));
    }

    pub(super) fn get(&self, number: u64, node: u64) -> Result<Arc<Handle>, Errno> {
        let found = self.table().open.get(&number).cloned();
        found
            .filter(|handle| handle.node == node)
            .ok_or(Errno::BADF)
    }

    pub(super) fn remove(&self, number: u64, node: u64) -> Result<(), Errno> {
        self.get(number, node)?;
        self.table().open.remove(&number);
        Ok(())
    }

    pub(super) fn all(&self) -> Vec<(u64, Arc<Handle>)> {
        self.table()
            .open
            .iter()
            .map(|(&number, handle)| (number, Arc::clone(handle)))
            .collect()
    }

    pub(super) fn clear(&self) {
        self.table().open.clear();
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn handle(node: u64, file: OwnedFd, flags: OFlags) -> Arc<Handle> {
    Arc::new(Handle {
        node,
        file,
        flags,
        listing: Mutex::default(),
    })
}
