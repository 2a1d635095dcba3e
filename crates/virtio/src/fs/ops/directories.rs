//! Reading directories.

use std::mem::MaybeUninit;
use std::sync::PoisonError;

use rustix::fs::{OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use crate::fs::abi::{self, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, MAX_DATA, ROOT};
use crate::fs::config::CachePolicy;
use crate::fs::handles::{Entry, Handle, Listing};
use crate::fs::nodes::Node;
use crate::fs::server::{Reply, Request, Result, Server};

/// Bytes of entries taken from the host at once. Those that the guest has no room for are kept with its handle.
const BUFFER: usize = 1 << 10;
/// `struct fuse_dirent` without its name, and `struct fuse_entry_out`.
const DIRENT: usize = 24;
const ATTRIBUTES: usize = 128;

impl Server {
    pub(crate) fn opendir(&self, request: Request<'_>) -> Result<Reply> {
        let node = self.node(&request)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.open_node(&node, flags)?;
        let handle = self.handles.add(node.id, directory, flags)?;
        let caching = match self.cache {
            CachePolicy::Always => FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE,
            _ => 0,
        };
        Ok(Reply::Data(abi::open_out(handle, caching)))
    }

    pub(crate) fn readdir(&self, mut request: Request<'_>, plus: bool) -> Result<Reply> {
        let (handle, offset) = (request.body.u64()?, request.body.u64()?);
        let size = request.body.u32()?.min(MAX_DATA);
        let node = self.node(&request)?;
        let handle = self.handle(handle, &request)?;
        let room = request.room.remaining().min(u64::from(size)) as usize;
        let mut list = List {
            out: Vec::new(),
            room,
            plus,
        };

        let mut listing = handle
            .listing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if listing.next != offset {
            rustix::fs::seek(&handle.file, SeekFrom::Start(offset))?;
            listing.ahead.clear();
            listing.next = offset;
        }
        loop {
            if listing.ahead.is_empty() {
                match read_ahead(&handle, &mut listing) {
                    Ok(()) => {}
                    Err(errno) if list.out.is_empty() => return Err(errno),
                    Err(_) => break,
                }
            }
            let Some(entry) = listing.ahead.pop_front() else {
                break;
            };
            let given = list.out.len();
            if !self.list(&mut list, &entry, &node)? {
                listing.ahead.push_front(entry);
                break;
            }
            // The guest knows nothing of one that is left out.
            if list.out.len() > given {
                listing.next = entry.next;
            }
        }
        Ok(Reply::Data(list.out))
    }

    /// Adds an entry. Returns whether there was room.
    fn list(&self, list: &mut List, item: &Entry, directory: &Node) -> Result<bool> {
        if !list.has_room(item) {
            return Ok(false);
        }
        if !list.plus {
            list.add(item, item.inode);
        } else if item.dots {
            list.add_known(item, None, self);
        } else {
            match self.find(directory, &item.name) {
                Ok(found) => list.add_known(item, Some(found), self),
                // Gone meanwhile, or not for us: it is listed without attributes, and asked for if it matters.
                Err(Errno::NOENT) => {}
                Err(_) => list.add_known(item, None, self),
            }
        }
        Ok(true)
    }
}

/// Takes the next entries from the host; none at the directory's end.
///
/// The place in the directory is left to the host: where a file system counts entries (tmpfs before Linux 6.6), going
/// back to a place after some were deleted would skip as many.
fn read_ahead(handle: &Handle, listing: &mut Listing) -> Result<()> {
    let mut buffer = [const { MaybeUninit::uninit() }; BUFFER];
    let mut entries = RawDir::new(&handle.file, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        let dots = matches!(name.to_bytes(), b"." | b"..");
        listing.ahead.push_back(Entry {
            name: name.to_owned(),
            // What lies above is not shown, not even its number.
            inode: if dots { ROOT } else { entry.ino() },
            dots,
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        });
        if entries.is_buffer_empty() {
            break;
        }
    }
    Ok(())
}

struct List {
    out: Vec<u8>,
    room: usize,
    plus: bool,
}

impl List {
    fn has_room(&self, item: &Entry) -> bool {
        let entry = if self.plus { ATTRIBUTES } else { 0 };
        let dirent = (DIRENT + item.name.count_bytes()).next_multiple_of(8);
        self.out.len() + entry + dirent <= self.room
    }

    /// `struct fuse_dirent`
    fn add(&mut self, item: &Entry, inode: u64) {
        let name = item.name.to_bytes();
        self.out.extend(inode.to_le_bytes());
        self.out.extend(item.next.to_le_bytes());
        self.out.extend((name.len() as u32).to_le_bytes());
        self.out
            .extend((item.kind.as_raw_mode() >> 12).to_le_bytes());
        self.out.extend(name);
        self.out.resize(self.out.len().next_multiple_of(8), 0);
    }

    /// `struct fuse_direntplus`
    fn add_known(&mut self, item: &Entry, found: Option<(u64, Stat)>, server: &Server) {
        match found {
            Some((id, stat)) => {
                abi::entry(&mut self.out, id, &stat, server.cache.validity());
                self.add(item, stat.st_ino);
            }
            None => {
                self.out.resize(self.out.len() + ATTRIBUTES, 0);
                self.add(item, item.inode);
            }
        }
    }
}
