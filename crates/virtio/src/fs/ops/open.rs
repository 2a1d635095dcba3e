//! Opening and closing files.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::fs::abi::{self, FOPEN_KEEP_CACHE, OPEN_KILL_SUIDGID};
use crate::fs::config::CachePolicy;
use crate::fs::nodes::Node;
use crate::fs::server::{Reply, Request, Result, Server};

/// What a guest may ask for. `O_DIRECT` is its own business: it would tie the guest's buffers to the host's rules.
const ALLOWED: OFlags = OFlags::ACCMODE
    .union(OFlags::APPEND)
    .union(OFlags::TRUNC)
    .union(OFlags::SYNC)
    .union(OFlags::DSYNC);

impl Server {
    pub(crate) fn open(&self, mut request: Request<'_>) -> Result<Reply> {
        let (flags, open_flags) = (request.body.u32()?, request.body.u32()?);
        let node = self.node(&request)?;
        if node.kind == FileType::Directory {
            return Err(Errno::ISDIR);
        }
        let flags = self.flags(flags)?;
        let file = self.open_file(&node, flags)?;
        if open_flags & OPEN_KILL_SUIDGID != 0 && flags.contains(OFlags::TRUNC) {
            self.drop_set_ids(&node)?;
        }
        let handle = self.handles.add(node.id, file, flags)?;
        Ok(Reply::Data(abi::open_out(handle, self.caching())))
    }

    /// The host's flags for the guest's.
    fn flags(&self, flags: u32) -> Result<OFlags> {
        let mut flags = OFlags::from_bits_retain(flags).intersection(ALLOWED);
        let reads = flags.intersection(OFlags::ACCMODE) == OFlags::RDONLY;
        if !reads || flags.contains(OFlags::TRUNC) {
            self.check_writable()?;
        }
        if self.writeback.load(Ordering::Relaxed) {
            // The guest reads pages of which it writes a part, and knows by itself where the end is.
            flags.remove(OFlags::APPEND);
            if flags.intersection(OFlags::ACCMODE) == OFlags::WRONLY {
                flags = flags.difference(OFlags::ACCMODE) | OFlags::RDWR;
            }
        }
        Ok(flags)
    }

    pub(crate) fn open_file(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        match self.open_node(node, flags) {
            // It was to be written only, perhaps, and may not be read.
            Err(Errno::ACCESS) if self.writeback.load(Ordering::Relaxed) => {
                self.open_node(node, flags.difference(OFlags::ACCMODE) | OFlags::WRONLY)
            }
            result => result,
        }
    }

    fn caching(&self) -> u32 {
        if self.cache == CachePolicy::Always {
            FOPEN_KEEP_CACHE
        } else {
            0
        }
    }

    pub(crate) fn create(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let (wanted, mode) = (request.body.u32()?, request.body.u32()?);
        let (_umask, _open_flags) = (request.body.u32()?, request.body.u32()?);
        let name = request.body.name()?;
        let parent = self.node(&request)?;
        let flags = self.flags(wanted)?;
        let exclusive = OFlags::from_bits_retain(wanted).contains(OFlags::EXCL);
        match self.make_file(&request, &parent, name, flags, mode) {
            Ok(file) => self.opened(file, flags),
            Err(Errno::EXIST) if !exclusive => {
                // Somebody else was quicker. What is there may be anything, and is opened with all the checks.
                let (id, _) = self.find(&parent, name)?;
                let node = self.nodes.get(id)?;
                let opened = self
                    .open_file(&node, flags)
                    .and_then(|file| self.opened(file, flags));
                // Counted twice by now, told once.
                self.nodes.forget(id, 1);
                opened
            }
            Err(errno) => Err(errno),
        }
    }

    fn make_file(
        &self,
        request: &Request<'_>,
        parent: &Node,
        name: &CStr,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd> {
        let made = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let flags = flags.difference(OFlags::TRUNC) | made | OFlags::NONBLOCK;
        let permissions = Mode::from_raw_mode(mode & 0o7777);
        let file = rustix::fs::openat(&parent.fd, name, flags, permissions)?;
        self.finish(request, parent, &file, Some(mode))?;
        Ok(file)
    }

    pub(crate) fn tmpfile(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let (wanted, mode) = (request.body.u32()?, request.body.u32()?);
        let (_umask, _open_flags) = (request.body.u32()?, request.body.u32()?);
        // The file has none; what stands here is not looked at.
        let _name = request.body.string()?;
        let parent = self.node(&request)?;
        let flags = self.flags(wanted)?;
        let directory = self.open_node(&parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let made = flags.difference(OFlags::TRUNC) | OFlags::TMPFILE | OFlags::CLOEXEC;
        let permissions = Mode::from_raw_mode(mode & 0o7777);
        let file = rustix::fs::openat(&directory, c".", made, permissions)?;
        self.finish(&request, &parent, &file, Some(mode))?;
        self.opened(file, flags)
    }

    /// The reply for a file that was just made: its entry, and a handle.
    fn opened(&self, file: OwnedFd, flags: OFlags) -> Result<Reply> {
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let name = self.name_of(&file);
        let fd = rustix::fs::openat(&self.descriptors, name, path, Mode::empty())?;
        let (id, stat) = self.know(fd)?;
        let handle = match self.handles.add(id, file, flags) {
            Ok(handle) => handle,
            Err(errno) => {
                self.nodes.forget(id, 1);
                return Err(errno);
            }
        };
        let mut out = Vec::with_capacity(144);
        abi::entry(&mut out, id, &stat, self.cache.validity());
        out.extend(abi::open_out(handle, self.caching()));
        Ok(Reply::Data(out))
    }

    pub(crate) fn release(&self, mut request: Request<'_>) -> Result<Reply> {
        self.handles
            .remove(request.body.u64()?, request.header.node)?;
        Ok(Reply::Data(Vec::new()))
    }

    /// A program in the guest has closed a descriptor: it hears of errors of writing, such as a full disk on NFS.
    pub(crate) fn flush(&self, mut request: Request<'_>) -> Result<Reply> {
        let handle = self.handle(request.body.u64()?, &request)?;
        // Closing a copy flushes as closing does, where the file system does so at all.
        let copy = rustix::io::fcntl_dupfd_cloexec(&handle.file, 0)?;
        // SAFETY: the descriptor is our own copy and not used after this.
        let closed = unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(copy)) };
        if closed == 0 {
            return Ok(Reply::Data(Vec::new()));
        }
        Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
    }

    pub(crate) fn fsync(&self, mut request: Request<'_>) -> Result<Reply> {
        let handle = self.handle(request.body.u64()?, &request)?;
        if request.body.u32()? & abi::FSYNC_DATA != 0 {
            rustix::fs::fdatasync(&handle.file)?;
        } else {
            rustix::fs::fsync(&handle.file)?;
        }
        Ok(Reply::Data(Vec::new()))
    }

    pub(crate) fn syncfs(&self, request: Request<'_>) -> Result<Reply> {
        let node = self.node(&request)?;
        let directory = self.open_node(&node, OFlags::RDONLY)?;
        rustix::fs::syncfs(directory)?;
        Ok(Reply::Data(Vec::new()))
    }

    /// Whether a node still has a name: for tests and for saving.
    pub(crate) fn is_linked(&self, node: &Node) -> bool {
        let stat = rustix::fs::statat(&node.fd, c"", AtFlags::EMPTY_PATH);
        stat.is_ok_and(|stat| stat.st_nlink > 0)
    }
}
