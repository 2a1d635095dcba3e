//! Numbers and layouts of the FUSE protocol.

use std::time::Duration;

use rustix::fs::Stat;

pub(super) const MAJOR: u32 = 7;
pub(super) const MINOR: u32 = 38;
/// The number of the shared directory itself.
pub(super) const ROOT: u64 = 1;
/// Bytes of the header of a request, and of a reply.
pub(super) const IN_HEADER: usize = 40;
pub(super) const OUT_HEADER: usize = 16;
/// Most data of one read or write.
pub(super) const MAX_DATA: u32 = 1 << 20;
pub(super) const MAX_PAGES: u16 = 256;

pub(super) mod opcode {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const FLUSH: u32 = 25;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const OPENDIR: u32 = 27;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const RELEASEDIR: u32 = 29;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const INTERRUPT: u32 = 36;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const COPY_FILE_RANGE: u32 = 47;
    pub(crate) const SYNCFS: u32 = 50;
    pub(crate) const TMPFILE: u32 = 51;
}

/// Flags of `FUSE_INIT`.
pub(super) mod init {
    pub(crate) const ASYNC_READ: u32 = 1;
    pub(crate) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(crate) const BIG_WRITES: u32 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(crate) const ASYNC_DIO: u32 = 1 << 15;
    pub(crate) const WRITEBACK_CACHE: u32 = 1 << 16;
    pub(crate) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(crate) const MAX_PAGES: u32 = 1 << 22;
    pub(crate) const CACHE_SYMLINKS: u32 = 1 << 23;
    pub(crate) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// Which fields of a `FUSE_SETATTR` count.
pub(super) mod setattr {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const KILL_SUIDGID: u32 = 1 << 11;
}

/// `FUSE_GETATTR_FH`
pub(super) const GETATTR_FH: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`
pub(super) const FSYNC_DATA: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_OPEN_KILL_SUIDGID`
pub(super) const OPEN_KILL_SUIDGID: u32 = 1;
/// `FOPEN_KEEP_CACHE`, `FOPEN_CACHE_DIR`
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
pub(super) const FOPEN_CACHE_DIR: u32 = 1 << 3;

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The header of a reply; `error` is 0 or an error number.
pub(super) fn out_header(len: usize, error: i32, unique: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(OUT_HEADER);
    out.extend((len as u32).to_le_bytes());
    out.extend(error.saturating_neg().to_le_bytes());
    out.extend(unique.to_le_bytes());
    out
}

/// `struct fuse_attr`
pub(super) fn attr(out: &mut Vec<u8>, stat: &Stat) {
    let u64s = [
        stat.st_ino,
        stat.st_size as u64,
        stat.st_blocks as u64,
        stat.st_atime as u64,
        stat.st_mtime as u64,
        stat.st_ctime as u64,
    ];
    let u32s = [
        stat.st_atime_nsec as u32,
        stat.st_mtime_nsec as u32,
        stat.st_ctime_nsec as u32,
        stat.st_mode,
        stat.st_nlink as u32,
        stat.st_uid,
        stat.st_gid,
        device_number(stat.st_rdev),
        stat.st_blksize as u32,
        0,
    ];
    u64s.iter()
        .for_each(|field| out.extend(field.to_le_bytes()));
    u32s.iter()
        .for_each(|field| out.extend(field.to_le_bytes()));
}

/// Linux's 32-bit form of a device number.
fn device_number(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | major << 8 & 0xf_ff00 | (minor & !0xff) << 12
}

/// The other way round.
pub(super) fn device_from_number(number: u32) -> u64 {
    let (major, minor) = (
        number >> 8 & 0xfff,
        number & 0xff | number >> 12 & 0xfff_ff00,
    );
    rustix::fs::makedev(major, minor)
}

/// `struct fuse_entry_out`; node 0 says that there is none.
pub(super) fn entry(out: &mut Vec<u8>, node: u64, stat: &Stat, validity: Duration) {
    for field in [node, 0, validity.as_secs(), validity.as_secs()] {
        out.extend(field.to_le_bytes());
    }
    for field in [validity.subsec_nanos(); 2] {
        out.extend(field.to_le_bytes());
    }
    attr(out, stat);
}

/// `struct fuse_attr_out`
pub(super) fn attr_out(stat: &Stat, validity: Duration) -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    out.extend(validity.as_secs().to_le_bytes());
    out.extend(validity.subsec_nanos().to_le_bytes());
    out.extend([0; 4]);
    attr(&mut out, stat);
    out
}

/// `struct fuse_open_out`
pub(super) fn open_out(handle: u64, flags: u32) -> Vec<u8> {
    let mut out = handle.to_le_bytes().to_vec();
    out.extend(flags.to_le_bytes());
    out.extend([0; 4]);
    out
}
