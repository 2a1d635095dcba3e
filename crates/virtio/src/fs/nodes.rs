//! Files that the guest knows: a number each, and an open descriptor that says which file it is.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::abi::ROOT;
use super::config::{FileId, Filter};

/// Most files known at once: each takes a descriptor. The guest forgets those that it does not use.
const MAX_NODES: usize = 900_000;

/// A file that the guest knows.
pub(super) struct Node {
    pub(super) id: u64,
    /// Opened with `O_PATH`: it names the file whatever becomes of its path, and can do nothing else.
    pub(super) fd: OwnedFd,
    pub(super) kind: FileType,
    key: FileId,
}

pub(super) struct Nodes {
    root: Arc<Node>,
    filter: Filter,
    table: Mutex<Table>,
}

struct Table {
    by_id: HashMap<u64, (Arc<Node>, u64)>,
    by_key: HashMap<FileId, u64>,
    /// Numbers are not given twice: a stale one names nothing, not another file.
    next: u64,
}

impl Nodes {
    pub(super) fn new(root: OwnedFd, stat: &Stat, filter: Filter) -> Self {
        let root = Arc::new(Node {
            id: ROOT,
            fd: root,
            kind: FileType::Directory,
            key: FileId::of(stat),
        });
        let table = Table {
            by_id: HashMap::new(),
            by_key: HashMap::new(),
            next: ROOT + 1,
        };
        Self {
            root,
            filter,
            table: Mutex::new(table),
        }
    }

    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        if id == ROOT {
            return Ok(Arc::clone(&self.root));
        }
        let table = self.table();
        table
            .by_id
            .get(&id)
            .map(|(node, _)| Arc::clone(node))
            .ok_or(Errno::STALE)
    }

    /// The device of the shared directory.
    pub(super) fn root_device(&self) -> u64 {
        self.root.key.device()
    }

    /// Gives a file its number, and counts that the guest was told once more.
    pub(super) fn found(&self, fd: OwnedFd, stat: &Stat) -> Result<Arc<Node>, Errno> {
        let key = FileId::of(stat);
        if key == self.root.key {
            return Ok(Arc::clone(&self.root));
        }
        if self.filter.hides(stat) {
            return Err(Errno::NOENT);
        }
        let mut table = self.table();
        if let Some(id) = table.by_key.get(&key).copied()
            && let Some((node, told)) = table.by_id.get_mut(&id)
        {
            *told = told.saturating_add(1);
            return Ok(Arc::clone(node));
        }
        if table.by_id.len() >= MAX_NODES {
            return Err(Errno::NFILE);
        }
        let id = table.next;
        table.next += 1;
        Ok(table.insert(id, fd, stat, 1))
    }

    /// Takes a file over under the number that it had.
    pub(super) fn restore(&self, id: u64, fd: OwnedFd, stat: &Stat, told: u64) {
        if self.filter.hides(stat) {
            return;
        }
        let mut table = self.table();
        table.next = table.next.max(id.saturating_add(1));
        table.insert(id, fd, stat, told);
    }

    /// The guest forgets that it was told `count` times.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let mut table = self.table();
        let Some((node, told)) = table.by_id.get_mut(&id) else {
            return;
        };
        *told = told.saturating_sub(count);
        if *told == 0 {
            let key = node.key;
            table.by_id.remove(&id);
            if table.by_key.get(&key) == Some(&id) {
                table.by_key.remove(&key);
            }
        }
    }

    /// All but the root, with how often the guest was told.
    pub(super) fn all(&self) -> Vec<(Arc<Node>, u64)> {
        self.table().by_id.values().cloned().collect()
    }

    pub(super) fn clear(&self) {
        let mut table = self.table();
        table.by_id.clear();
        table.by_key.clear();
    }

    /// The next number, of which a restored share has to stay clear.
    pub(super) fn next_id(&self) -> u64 {
        self.table().next
    }

    pub(super) fn set_next_id(&self, next: u64) {
        let mut table = self.table();
        table.next = table.next.max(next);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, id: u64, fd: OwnedFd, stat: &Stat, told: u64) -> Arc<Node> {
        let key = FileId::of(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        let node = Arc::new(Node { id, fd, kind, key });
        self.by_key.insert(key, id);
        self.by_id.insert(id, (Arc::clone(&node), told));
        node
    }
}
