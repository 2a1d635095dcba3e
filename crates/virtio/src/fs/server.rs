//! One request in, one reply out.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::path::DecInt;

use super::abi::{self, IN_HEADER, InHeader, MAX_DATA, OUT_HEADER, init, opcode};
use super::body::Body;
use super::config::{CachePolicy, FsError, FsOptions};
use super::handles::{Handle, Handles};
use super::metrics::{FsMetrics, count};
use super::nodes::{Node, Nodes};
use super::owners::OwnerMap;
use crate::queue::{Cursor, ShortBuffer};
use crate::{Chain, DeviceError, GuestRam};

/// Longest request that is not a write: an attribute of 64 KiB with its name is the longest that makes sense.
const MAX_BODY: u64 = 128 << 10;

/// What a request gets back.
pub(super) enum Reply {
    /// Nothing at all.
    None,
    /// These bytes.
    Data(Vec<u8>),
    /// So many bytes, which are in the guest's memory already.
    Placed(u32),
}

pub(super) type Result<T> = std::result::Result<T, Errno>;

/// A shared directory.
pub(super) struct Server {
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
    pub(super) owners: OwnerMap,
    pub(super) cache: CachePolicy,
    pub(super) read_only: bool,
    pub(super) writeback: AtomicBool,
    pub(super) metrics: Arc<FsMetrics>,
    /// This process's `/proc/self/fd`, where a descriptor that only names a file becomes one that opens it.
    pub(super) descriptors: OwnedFd,
}

/// A request with its place in guest memory.
pub(super) struct Request<'r> {
    pub(super) header: InHeader,
    pub(super) body: Body<'r>,
    /// Data of a write.
    pub(super) data: Cursor<'r>,
    /// Where data of a read goes.
    pub(super) room: Cursor<'r>,
    pub(super) ram: &'r GuestRam,
}

/// Opens this process's `/proc/self/fd`, once for all shares to come: for a process that is about to lose sight of
/// `/proc`.
///
/// # Errors
/// There is no `/proc`, or no descriptor left.
pub fn keep_descriptors_in_reach() -> std::io::Result<BorrowedFd<'static>> {
    static DESCRIPTORS: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(descriptors) = DESCRIPTORS.get() {
        return Ok(descriptors.as_fd());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty())?;
    Ok(DESCRIPTORS.get_or_init(|| opened).as_fd())
}

impl Server {
    pub(super) fn new(root: OwnedFd, options: &FsOptions) -> std::result::Result<Self, FsError> {
        let failed = |doing| {
            move |errno: Errno| FsError::Io {
                doing,
                source: errno.into(),
            }
        };
        let stat = rustix::fs::statat(&root, c"", AtFlags::EMPTY_PATH)
            .map_err(failed("looking at the shared directory"))?;
        let descriptors = keep_descriptors_in_reach()
            .and_then(|descriptors| descriptors.try_clone_to_owned())
            .map_err(|source| FsError::Io {
                doing: "opening /proc/self/fd",
                source,
            })?;
        Ok(Self {
            nodes: Nodes::new(root, &stat, options.filter.clone()),
            handles: Handles::default(),
            owners: OwnerMap::new(options.owners),
            cache: options.cache,
            read_only: options.read_only,
            writeback: AtomicBool::new(false),
            metrics: Arc::default(),
            descriptors,
        })
    }

    /// Serves the request in `chain`. Returns how many bytes were written to it.
    pub(super) fn serve(
        &self,
        chain: &Chain,
        ram: &GuestRam,
    ) -> std::result::Result<u32, DeviceError> {
        let mut readable = Cursor::new(chain.readable());
        let mut raw = [0; IN_HEADER];
        readable.read_exact(ram, &mut raw)?;
        let Some(header) = InHeader::from_bytes(&raw) else {
            return Ok(0);
        };
        count(&self.metrics.requests, 1);
        let mut room = Cursor::new(chain.writable());
        room.skip(OUT_HEADER as u64);

        let mut bytes = Vec::new();
        let reply = match self.read_body(&header, &mut readable, ram, &mut bytes)? {
            Ok(()) => {
                let body = Body(&bytes);
                self.dispatch(Request {
                    header,
                    body,
                    data: readable,
                    room: room.clone(),
                    ram,
                })
            }
            Err(errno) => Err(errno),
        };
        self.answer(&header, reply, chain, room.remaining(), ram)
    }

    /// Reads all but the data of a write.
    fn read_body(
        &self,
        header: &InHeader,
        readable: &mut Cursor<'_>,
        ram: &GuestRam,
        bytes: &mut Vec<u8>,
    ) -> std::result::Result<Result<()>, DeviceError> {
        let told = u64::from(header.len).checked_sub(IN_HEADER as u64);
        let Some(told) = told.filter(|&told| told <= readable.remaining()) else {
            return Ok(Err(Errno::INVAL));
        };
        let len = if header.opcode == opcode::WRITE {
            told.min(40)
        } else {
            told
        };
        if len > MAX_BODY {
            return Ok(Err(Errno::TOOBIG));
        }
        bytes.resize(len as usize, 0);
        readable.read_exact(ram, bytes)?;
        Ok(Ok(()))
    }

    fn answer(
        &self,
        header: &InHeader,
        reply: Result<Reply>,
        chain: &Chain,
        room: u64,
        ram: &GuestRam,
    ) -> std::result::Result<u32, DeviceError> {
        let mut out = Cursor::new(chain.writable());
        let fits = |len: usize| len as u64 <= room;
        let reply = match reply {
            Ok(Reply::None) => return Ok(0),
            Ok(Reply::Data(data)) if !fits(data.len()) => Err(Errno::RANGE),
            reply => reply,
        };
        let (placed, data, error) = match reply {
            Ok(Reply::Data(data)) => (0, data, 0),
            Ok(Reply::Placed(count)) => (count, Vec::new(), 0),
            Ok(Reply::None) => return Ok(0),
            Err(errno) => {
                count(&self.metrics.failures, 1);
                (0, Vec::new(), errno.raw_os_error())
            }
        };
        let len = OUT_HEADER + data.len() + placed as usize;
        let mut bytes = abi::out_header(len, error, header.unique);
        bytes.extend(data);
        match out.write_all(ram, &bytes) {
            Ok(()) => Ok(len as u32),
            // A guest that gives no room for a reply gets none.
            Err(ShortBuffer::Short(_)) => Ok(0),
            Err(ShortBuffer::Queue(error)) => Err(error.into()),
        }
    }

    fn dispatch(&self, request: Request<'_>) -> Result<Reply> {
        match request.header.opcode {
            opcode::INIT => self.init(request),
            opcode::DESTROY => {
                self.forget_all();
                Ok(Reply::Data(Vec::new()))
            }
            opcode::FORGET => self.forget(request),
            opcode::BATCH_FORGET => self.batch_forget(request),
            opcode::INTERRUPT => Ok(Reply::None),
            opcode::LOOKUP => self.lookup(request),
            opcode::GETATTR => self.getattr(request),
            opcode::SETATTR => self.setattr(request),
            opcode::READLINK => self.readlink(request),
            opcode::STATFS => self.statfs(request),
            opcode::SYMLINK => self.symlink(request),
            opcode::MKNOD => self.mknod(request),
            opcode::MKDIR => self.mkdir(request),
            opcode::UNLINK => self.unlink(request, AtFlags::empty()),
            opcode::RMDIR => self.unlink(request, AtFlags::REMOVEDIR),
            opcode::RENAME => self.rename(request, false),
            opcode::RENAME2 => self.rename(request, true),
            opcode::LINK => self.link(request),
            opcode::OPEN => self.open(request),
            opcode::CREATE => self.create(request),
            opcode::TMPFILE => self.tmpfile(request),
            opcode::READ => self.read(request),
            opcode::WRITE => self.write(request),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(request),
            opcode::FLUSH => self.flush(request),
            opcode::FSYNC | opcode::FSYNCDIR => self.fsync(request),
            opcode::FALLOCATE => self.fallocate(request),
            opcode::LSEEK => self.lseek(request),
            opcode::COPY_FILE_RANGE => self.copy_file_range(request),
            opcode::SYNCFS => self.syncfs(request),
            opcode::OPENDIR => self.opendir(request),
            opcode::READDIR => self.readdir(request, false),
            opcode::READDIRPLUS => self.readdir(request, true),
            opcode::GETXATTR => self.getxattr(request),
            opcode::LISTXATTR => self.listxattr(request),
            opcode::SETXATTR => self.setxattr(request),
            opcode::REMOVEXATTR => self.removexattr(request),
            // The guest does these by itself then (locks), or tells its program.
            _ => Err(Errno::NOSYS),
        }
    }

    fn init(&self, mut request: Request<'_>) -> Result<Reply> {
        let body = &mut request.body;
        let (major, minor) = (body.u32()?, body.u32()?);
        let (max_readahead, offered) = (body.u32()?, body.u32()?);
        let mut out = Vec::with_capacity(64);
        if major != abi::MAJOR {
            // It asks again with our version, or gives up.
            out.extend(abi::MAJOR.to_le_bytes());
            out.extend(abi::MINOR.to_le_bytes());
            out.resize(64, 0);
            return if major < abi::MAJOR {
                Err(Errno::PROTO)
            } else {
                Ok(Reply::Data(out))
            };
        }
        // A guest that begins anew knows nothing any more.
        self.forget_all();
        let mut wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2;
        if self.cache == CachePolicy::Always {
            wanted |= init::CACHE_SYMLINKS;
            wanted &= !init::AUTO_INVAL_DATA;
            if !self.read_only {
                wanted |= init::WRITEBACK_CACHE;
            }
        }
        let flags = wanted & offered;
        self.writeback
            .store(flags & init::WRITEBACK_CACHE != 0, Ordering::Relaxed);
        for field in [abi::MAJOR, abi::MINOR.min(minor), max_readahead, flags] {
            out.extend(field.to_le_bytes());
        }
        // max_background and congestion_threshold: the kernel's own.
        out.extend([0; 4]);
        out.extend(MAX_DATA.to_le_bytes());
        out.extend(1u32.to_le_bytes()); // time_gran: nanoseconds
        out.extend(abi::MAX_PAGES.to_le_bytes());
        out.resize(64, 0);
        Ok(Reply::Data(out))
    }

    pub(super) fn forget_all(&self) {
        self.handles.clear();
        self.nodes.clear();
    }

    fn forget(&self, mut request: Request<'_>) -> Result<Reply> {
        // Nobody hears of an error.
        if let Ok(count) = request.body.u64() {
            self.nodes.forget(request.header.node, count);
        }
        Ok(Reply::None)
    }

    fn batch_forget(&self, mut request: Request<'_>) -> Result<Reply> {
        let body = &mut request.body;
        let Ok(count) = body.u32() else {
            return Ok(Reply::None);
        };
        let _ = body.u32();
        for _ in 0..count {
            let (Ok(node), Ok(times)) = (body.u64(), body.u64()) else {
                break;
            };
            self.nodes.forget(node, times);
        }
        Ok(Reply::None)
    }

    /// Refuses what would change a read-only share.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    /// The attributes of a descriptor as the guest sees them.
    pub(super) fn stat(&self, fd: impl AsFd) -> Result<Stat> {
        let mut stat = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?;
        self.show(&mut stat);
        Ok(stat)
    }

    pub(super) fn show(&self, stat: &mut Stat) {
        self.owners.show(stat);
        let device = stat.st_dev;
        if device != self.nodes.root_device() {
            // Numbers of another file system mounted here are kept apart from ours.
            stat.st_ino ^= device << 40 | 1 << 63;
        }
    }

    /// Opens the file that a node names.
    pub(super) fn open_node(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        use rustix::fs::FileType;
        if !matches!(node.kind, FileType::RegularFile | FileType::Directory) {
            // A guest opens devices and pipes by itself. Here they would be the host's.
            return Err(Errno::NXIO);
        }
        let flags = flags.difference(OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL);
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        rustix::fs::openat(
            &self.descriptors,
            self.name_of(&node.fd),
            flags,
            Mode::empty(),
        )
    }

    /// The name of a descriptor in `/proc/self/fd`.
    pub(super) fn name_of(&self, fd: impl AsFd) -> DecInt {
        DecInt::new(fd.as_fd().as_raw_fd())
    }

    pub(super) fn handle(&self, number: u64, request: &Request<'_>) -> Result<Arc<Handle>> {
        self.handles.get(number, request.header.node)
    }

    pub(super) fn node(&self, request: &Request<'_>) -> Result<Arc<Node>> {
        self.nodes.get(request.header.node)
    }
}
