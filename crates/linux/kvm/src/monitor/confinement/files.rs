//! Threads that wait for files: of disks, which are open, and of shared directories, in which files
//! are opened. Which files those can be is what the empty root and Landlock see to.

use capsa_process::confine::When::Is;
use capsa_process::confine::{Policy, Rule, allow, allow_when};
use libc::*;

use super::common::{EVERY_THREAD, NO_BACKTRACE, NO_PATHS};
use super::devices::EVENT_LOOP;

/// Of a machine without shared directories.
pub(super) const OF_DISKS: Policy = Policy {
    thread: "disk",
    rules: &[EVERY_THREAD, NO_BACKTRACE, EVENT_LOOP, OPEN_FILES],
};

/// Of a machine with shared directories.
pub(super) const OF_SHARES: Policy = Policy {
    thread: "file",
    // Calls with a path of the process's own, which the allocator tries, look missing.
    rules: &[EVERY_THREAD, NO_PATHS, EVENT_LOOP, OPEN_FILES, DIRECTORIES],
};

pub(super) const OPEN_FILES: &[Rule] = &[
    allow(SYS_pread64),
    allow(SYS_preadv),
    allow(SYS_preadv2),
    allow(SYS_pwrite64),
    allow(SYS_pwritev),
    allow(SYS_pwritev2),
    allow(SYS_readv),
    allow(SYS_writev),
    allow(SYS_lseek),
    allow(SYS_fsync),
    allow(SYS_fdatasync),
    allow(SYS_fallocate),
    allow(SYS_ftruncate),
    allow(SYS_fstat),
    allow(SYS_statx),
    allow(SYS_fcntl),
    // The ring was set up before
    allow(SYS_io_uring_enter),
    // Ranges of block devices
    allow_when(SYS_ioctl, &[Is(1, BLKZEROOUT)]),
    allow_when(SYS_ioctl, &[Is(1, BLKDISCARD)]),
];

/// Requests to block devices (`<linux/fs.h>`).
const BLKDISCARD: u32 = 0x1277;
const BLKZEROOUT: u32 = 0x127f;

pub(super) const DIRECTORIES: &[Rule] = &[
    allow(SYS_openat),
    allow(SYS_openat2),
    allow(SYS_newfstatat),
    allow(SYS_fstatfs),
    allow(SYS_getdents64),
    allow(SYS_readlinkat),
    allow(SYS_mkdirat),
    allow(SYS_mknodat),
    allow(SYS_symlinkat),
    allow(SYS_linkat),
    allow(SYS_unlinkat),
    allow(SYS_renameat2),
    allow(SYS_faccessat2),
    allow(SYS_fchmod),
    allow(SYS_fchmodat),
    allow(SYS_fchown),
    allow(SYS_fchownat),
    allow(SYS_utimensat),
    allow(SYS_copy_file_range),
    allow(SYS_syncfs),
    allow(SYS_fgetxattr),
    allow(SYS_fsetxattr),
    allow(SYS_flistxattr),
    allow(SYS_fremovexattr),
    allow(SYS_umask),
    // Whose files they become
    allow(SYS_geteuid),
    allow(SYS_getegid),
];
