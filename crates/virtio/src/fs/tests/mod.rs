mod escapes;
mod files;
mod hostile;
mod sharing;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tempfile::TempDir;

use super::abi::{ROOT, opcode};
use super::*;
use crate::testing::{Buffer, Harness};

const REQUESTS: u16 = 1;

/// A guest's kernel, speaking to a share of `outside/shared`.
struct Guest {
    harness: Harness,
    folder: TempDir,
    unique: u64,
    uid: u32,
    gid: u32,
}

struct Entry {
    node: u64,
    inode: u64,
    size: u64,
    mode: u32,
    nlink: u32,
    uid: u32,
    gid: u32,
}

impl Guest {
    fn new() -> Self {
        Self::with(FsOptions::new("share"))
    }

    fn with(options: FsOptions) -> Self {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join("shared")).unwrap();
        fs::write(folder.path().join("secret"), "outside").unwrap();
        let root = FsOptions::open_directory(&folder.path().join("shared")).unwrap();
        let harness = Harness::started(Fs::new(root, options).unwrap());
        let mut guest = Self {
            harness,
            folder,
            unique: 0,
            uid: 0,
            gid: 0,
        };
        guest.init(u32::MAX);
        guest
    }

    fn init(&mut self, offered: u32) -> u32 {
        let body = [7, 38, 1 << 20, offered].map(u32::to_le_bytes).concat();
        let reply = self.call(opcode::INIT, 0, &body).unwrap();
        assert_eq!(reply.len(), 64);
        u32::from_le_bytes(reply[12..16].try_into().unwrap())
    }

    /// The host's path of a file in the share.
    fn host(&self, name: &str) -> PathBuf {
        self.folder.path().join("shared").join(name)
    }

    fn secret(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    fn assert_untouched(&self) {
        assert_eq!(fs::read_to_string(self.secret()).unwrap(), "outside");
        assert_eq!(fs::read_dir(self.folder.path()).unwrap().count(), 2);
    }

    fn header(&mut self, opcode: u32, node: u64, len: usize) -> Vec<u8> {
        self.unique += 1;
        let mut header = (40 + len as u32).to_le_bytes().to_vec();
        header.extend(opcode.to_le_bytes());
        header.extend(self.unique.to_le_bytes());
        header.extend(node.to_le_bytes());
        [self.uid, self.gid, 1, 0]
            .iter()
            .for_each(|field| header.extend(field.to_le_bytes()));
        header
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
        self.call_with_room(opcode, node, body, 1 << 17)
    }

    fn call_with_room(
        &mut self,
        opcode: u32,
        node: u64,
        body: &[u8],
        room: u32,
    ) -> Result<Vec<u8>, Errno> {
        let header = self.header(opcode, node, body.len());
        let buffers = [
            Buffer::Readable(&header),
            Buffer::Readable(body),
            Buffer::Writable(16),
            Buffer::Writable(room),
        ];
        self.harness.queues[1].add_indirect(&buffers);
        self.harness.kick(REQUESTS);
        let (offered, written) = self.harness.queues[1].take_used().expect("an answer");
        let queue = &self.harness.queues[1];
        let reply = queue.read(offered.buffers[2].0, 16);
        let len = u32::from_le_bytes(reply[..4].try_into().unwrap());
        let error = i32::from_le_bytes(reply[4..8].try_into().unwrap());
        assert_eq!(len, written);
        assert_eq!(reply[8..], self.unique.to_le_bytes());
        if error != 0 {
            assert_eq!(len, 16);
            return Err(Errno::from_raw_os_error(-error));
        }
        Ok(queue.read(offered.buffers[3].0, len as usize - 16))
    }

    fn entry(reply: &[u8]) -> Entry {
        let u64_at = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().unwrap());
        let u32_at = |at: usize| u32::from_le_bytes(reply[at..at + 4].try_into().unwrap());
        Entry {
            node: u64_at(0),
            inode: u64_at(40),
            size: u64_at(48),
            mode: u32_at(100),
            nlink: u32_at(104),
            uid: u32_at(108),
            gid: u32_at(112),
        }
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<Entry, Errno> {
        self.call(opcode::LOOKUP, parent, &string(name))
            .map(|reply| Self::entry(&reply))
    }

    fn walk(&mut self, path: &str) -> Result<Entry, Errno> {
        let mut node = ROOT;
        let mut entry = None;
        for name in path.split('/') {
            let found = self.lookup(node, name)?;
            node = found.node;
            entry = Some(found);
        }
        Ok(entry.unwrap())
    }

    fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<Entry, Errno> {
        let body = [&fields(&[mode, 0]), &string(name)[..]].concat();
        self.call(opcode::MKDIR, parent, &body)
            .map(|reply| Self::entry(&reply))
    }

    fn create(&mut self, parent: u64, name: &str, flags: i32) -> Result<(Entry, u64), Errno> {
        self.create_mode(parent, name, flags, 0o644)
    }

    fn create_mode(
        &mut self,
        parent: u64,
        name: &str,
        flags: i32,
        mode: u32,
    ) -> Result<(Entry, u64), Errno> {
        let body = [&fields(&[flags as u32, mode, 0, 0]), &string(name)[..]].concat();
        let reply = self.call(opcode::CREATE, parent, &body)?;
        let handle = u64::from_le_bytes(reply[128..136].try_into().unwrap());
        Ok((Self::entry(&reply), handle))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, Errno> {
        let reply = self.call(opcode::OPEN, node, &fields(&[flags as u32, 0]))?;
        Ok(u64::from_le_bytes(reply[..8].try_into().unwrap()))
    }

    fn opendir(&mut self, node: u64) -> Result<u64, Errno> {
        let reply = self.call(opcode::OPENDIR, node, &fields(&[0, 0]))?;
        Ok(u64::from_le_bytes(reply[..8].try_into().unwrap()))
    }

    fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, Errno> {
        let body = [longs(&[handle, offset]), fields(&[size, 0, 0, 0, 0, 0])].concat();
        self.call_with_room(opcode::READ, node, &body, size)
    }

    fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, Errno> {
        let size = data.len() as u32;
        let body = [longs(&[handle, offset]), fields(&[size, 0, 0, 0, 0, 0])].concat();
        let reply = self.call(opcode::WRITE, node, &[&body, data].concat())?;
        Ok(u32::from_le_bytes(reply[..4].try_into().unwrap()))
    }

    fn unlink(&mut self, parent: u64, name: &str) -> Result<(), Errno> {
        self.call(opcode::UNLINK, parent, &string(name)).map(|_| ())
    }

    fn symlink(&mut self, parent: u64, name: &str, target: &str) -> Result<Entry, Errno> {
        let body = [string(name), string(target)].concat();
        self.call(opcode::SYMLINK, parent, &body)
            .map(|reply| Self::entry(&reply))
    }

    fn link(&mut self, node: u64, parent: u64, name: &str) -> Result<Entry, Errno> {
        let body = [longs(&[node]), string(name)].concat();
        self.call(opcode::LINK, parent, &body)
            .map(|reply| Self::entry(&reply))
    }

    fn rename(
        &mut self,
        from: u64,
        old: &str,
        to: u64,
        new: &str,
        flags: u32,
    ) -> Result<(), Errno> {
        let names = [string(old), string(new)].concat();
        let body = [longs(&[to]), fields(&[flags, 0]), names].concat();
        self.call(opcode::RENAME2, from, &body).map(|_| ())
    }

    /// Sets attributes: which, handle, size, mode, uid and gid.
    fn setattr(&mut self, node: u64, set: Set) -> Result<Entry, Errno> {
        let Set {
            valid,
            handle,
            size,
            mtime,
            mode,
            uid,
            gid,
        } = set;
        let mut body = fields(&[valid, 0]);
        body.extend(longs(&[handle, size, 0, 0, mtime, 0]));
        body.extend(fields(&[0, 0, 0, mode, 0, uid, gid, 0]));
        let reply = self.call(opcode::SETATTR, node, &body)?;
        Ok(Self::entry(&[&[0; 24], &reply[..]].concat()))
    }

    fn getattr(&mut self, node: u64) -> Result<Entry, Errno> {
        let body = [fields(&[0, 0]), longs(&[0])].concat();
        let reply = self.call(opcode::GETATTR, node, &body)?;
        // The same attributes, further back in an entry.
        Ok(Self::entry(&[&[0; 24], &reply[..]].concat()))
    }

    fn forget(&mut self, node: u64, count: u64) {
        let header = self.header(opcode::FORGET, node, 8);
        let count = count.to_le_bytes();
        self.harness.queues[0].add(&[Buffer::Readable(&header), Buffer::Readable(&count)]);
        self.harness.kick(0);
        assert_eq!(self.harness.queues[0].take_used().unwrap().1, 0);
    }

    /// All names of a directory, read in small pieces, with a place that cannot be asked for between any two.
    fn list(&mut self, node: u64, plus: bool) -> Vec<(String, u64)> {
        let handle = self.opendir(node).unwrap();
        let (mut names, mut offset) = (Vec::new(), 0u64);
        loop {
            let at = |offset| [longs(&[handle, offset]), fields(&[4096, 0, 0, 0, 0, 0])].concat();
            let body = at(offset);
            let opcode = if plus {
                opcode::READDIRPLUS
            } else {
                opcode::READDIR
            };
            let refused = self.call_with_room(opcode, node, &at(u64::MAX), 4096);
            assert_eq!(refused.err(), Some(Errno::INVAL));
            let reply = self.call_with_room(opcode, node, &body, 4096).unwrap();
            if reply.is_empty() {
                let body = [longs(&[handle]), fields(&[0, 0]), longs(&[0])].concat();
                self.call(opcode::RELEASEDIR, node, &body).unwrap();
                return names;
            }
            let mut rest = &reply[..];
            while !rest.is_empty() {
                let mut id = 0;
                if plus {
                    id = u64::from_le_bytes(rest[..8].try_into().unwrap());
                    rest = &rest[128..];
                }
                offset = u64::from_le_bytes(rest[8..16].try_into().unwrap());
                let len = u32::from_le_bytes(rest[16..20].try_into().unwrap()) as usize;
                let name = String::from_utf8(rest[24..24 + len].to_vec()).unwrap();
                names.push((name, id));
                rest = &rest[(24 + len).next_multiple_of(8)..];
            }
        }
    }
}

#[derive(Default)]
struct Set {
    valid: u32,
    handle: u64,
    size: u64,
    mtime: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

fn string(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn fields(fields: &[u32]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}
