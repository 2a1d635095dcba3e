//! Reading directories.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::sync::PoisonError;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;

use crate::fs::abi::{self, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, MAX_DATA, ROOT};
use crate::fs::config::CachePolicy;
use crate::fs::nodes::Node;
use crate::fs::server::{Reply, Request, Result, Server};

/// Bytes of entries taken from the host at once.
const BUFFER: usize = 32 << 10;
/// `struct fuse_dirent` without its name, and `struct fuse_entry_out`.
const DIRENT: usize = 24;
const ENTRY: usize = 128;

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

        let _position = handle
            .position
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&handle.file, SeekFrom::Start(offset))?;
        let mut buffer = [const { MaybeUninit::uninit() }; BUFFER];
        let mut entries = RawDir::new(&handle.file, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(errno) if list.out.is_empty() => return Err(errno),
                Err(_) => break,
            };
            let name = entry.file_name();
            // What lies above is not shown, not even its number.
            let dots = matches!(name.to_bytes(), b"." | b"..");
            let item = Item {
                name,
                inode: if dots { ROOT } else { entry.ino() },
                dots,
                kind: entry.file_type(),
                next: entry.next_entry_cookie(),
            };
            if !self.list(&mut list, &item, &node)? {
                break;
            }
        }
        Ok(Reply::Data(list.out))
    }

    /// Adds an entry. Returns whether there was room.
    fn list(&self, list: &mut List, item: &Item<'_>, directory: &Node) -> Result<bool> {
        if !list.has_room(item) {
            return Ok(false);
        }
        if !list.plus {
            list.add(item, item.inode);
        } else if item.dots {
            list.add_known(item, None, self);
        } else {
            match self.find(directory, item.name) {
                Ok(found) => list.add_known(item, Some(found), self),
                // Gone meanwhile, or not for us: it is listed without attributes, and asked for if it matters.
                Err(Errno::NOENT) => {}
                Err(_) => list.add_known(item, None, self),
            }
        }
        Ok(true)
    }
}

struct Item<'i> {
    name: &'i CStr,
    inode: u64,
    dots: bool,
    kind: FileType,
    next: u64,
}

struct List {
    out: Vec<u8>,
    room: usize,
    plus: bool,
}

impl List {
    fn has_room(&self, item: &Item<'_>) -> bool {
        let entry = if self.plus { ENTRY } else { 0 };
        let dirent = (DIRENT + item.name.count_bytes()).next_multiple_of(8);
        self.out.len() + entry + dirent <= self.room
    }

    /// `struct fuse_dirent`
    fn add(&mut self, item: &Item<'_>, inode: u64) {
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
    fn add_known(&mut self, item: &Item<'_>, found: Option<(u64, Stat)>, server: &Server) {
        match found {
            Some((id, stat)) => {
                abi::entry(&mut self.out, id, &stat, server.cache.validity());
                self.add(item, stat.st_ino);
            }
            None => {
                self.out.resize(self.out.len() + ENTRY, 0);
                self.add(item, item.inode);
            }
        }
    }
}
