//! System calls that several policies have in common, by what they are for. Which files can be opened is
//! what the empty root and Landlock see to.

use libc::*;

use super::When::{Is, Ourselves, With, Without};
use super::{Rule, allow, allow_when, pretend_missing};

/// `PROT_EXEC`: nobody makes memory executable.
const EXECUTABLE: u64 = 4;

/// The allocator, locks, the thread's own end, and its last words.
pub const EVERY_THREAD: &[Rule] = &[
    // Memory
    allow_when(SYS_mmap, &[Without(2, EXECUTABLE)]),
    allow_when(SYS_mprotect, &[Without(2, EXECUTABLE)]),
    allow(SYS_munmap),
    allow(SYS_mremap),
    allow(SYS_madvise),
    allow(SYS_brk),
    // Locks and time
    allow(SYS_futex),
    allow(SYS_sched_yield),
    allow(SYS_clock_gettime),
    allow(SYS_clock_nanosleep),
    allow(SYS_restart_syscall),
    // Signals: the vCPUs are interrupted by one; `abort` raises another
    allow(SYS_rt_sigreturn),
    allow(SYS_rt_sigprocmask),
    allow(SYS_sigaltstack),
    allow(SYS_gettid),
    allow(SYS_getpid),
    allow_when(SYS_tgkill, &[Ourselves(0)]),
    // Events, logs, and everything that was opened before
    allow(SYS_read),
    allow(SYS_write),
    allow(SYS_close),
    // Whether a descriptor is open, which builds with assertions look at before they close it
    allow_when(SYS_fcntl, &[Is(1, F_GETFD as u32)]),
    // Seeds of hash maps
    allow(SYS_getrandom),
    // The end
    allow(SYS_exit),
    allow(SYS_exit_group),
];

/// What the standard library tries for the message of a panic, and the C library's allocator when it
/// gives memory back (`/proc/sys/vm/overcommit_memory`), and can do without.
pub const NO_BACKTRACE: &[Rule] = &[
    pretend_missing(SYS_open),
    pretend_missing(SYS_openat),
    pretend_missing(SYS_stat),
    pretend_missing(SYS_readlink),
    pretend_missing(SYS_getcwd),
];

/// The same for threads that open files below descriptors.
pub const NO_PATHS: &[Rule] = &[
    pretend_missing(SYS_open),
    pretend_missing(SYS_stat),
    pretend_missing(SYS_readlink),
    pretend_missing(SYS_getcwd),
];

/// The loop that every device thread turns.
pub const EVENT_LOOP: &[Rule] = &[
    allow(SYS_epoll_wait),
    allow(SYS_epoll_pwait),
    allow(SYS_epoll_pwait2),
    allow(SYS_epoll_ctl),
    allow(SYS_eventfd2),
    allow(SYS_timerfd_create),
    allow(SYS_timerfd_settime),
];

/// Devices that never wait for files: console, entropy, balloon, sockets, network.
pub const SOCKETS: &[Rule] = &[
    // Bytes, frames and messages over sockets that were handed over, and descriptors with them
    allow(SYS_readv),
    allow(SYS_writev),
    allow(SYS_sendto),
    allow(SYS_sendmsg),
    allow(SYS_sendmmsg),
    allow(SYS_recvfrom),
    allow(SYS_recvmsg),
    allow(SYS_recvmmsg),
    allow(SYS_shutdown),
    // Connections of the socket device
    allow_when(SYS_socketpair, &[Is(0, AF_UNIX as u32)]),
    allow(SYS_fcntl),
    // Memory that the guest gives back
    allow(SYS_fallocate),
];

/// Files and block devices that are open.
pub const OPEN_FILES: &[Rule] = &[
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

/// Files below descriptors of directories.
pub const DIRECTORIES: &[Rule] = &[
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

/// Making threads, and no processes; the C library falls back to the call whose flags can be looked at.
pub const NEW_THREADS: &[Rule] = &[
    allow_when(SYS_clone, &[With(0, NEW_THREAD)]),
    pretend_missing(SYS_clone3),
    allow(SYS_set_robust_list),
    allow(SYS_rseq),
    allow(SYS_sched_getaffinity),
    allow_when(SYS_prctl, &[Is(0, PR_SET_NAME as u32)]),
];

const NEW_THREAD: u64 = (CLONE_THREAD | CLONE_VM | CLONE_SIGHAND) as u64;

/// Making what devices work with: event loops, and the rings of disks.
pub const NEW_DEVICES: &[Rule] = &[
    allow(SYS_epoll_create1),
    allow(SYS_io_uring_setup),
    allow(SYS_io_uring_register),
    // Limits on the files of a share
    allow_when(SYS_prlimit64, &[Is(0, 0)]),
];
