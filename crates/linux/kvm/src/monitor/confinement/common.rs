//! What every thread needs.

use capsa_process::confine::When::{Is, Ourselves, Without};
use capsa_process::confine::{Rule, allow, allow_when, pretend_missing};
use libc::*;

/// `PROT_EXEC`: nobody makes memory executable.
const EXECUTABLE: u64 = 4;

/// The allocator, locks, the thread's own end, and its last words.
pub(super) const EVERY_THREAD: &[Rule] = &[
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
pub(super) const NO_BACKTRACE: &[Rule] = &[
    pretend_missing(SYS_open),
    pretend_missing(SYS_openat),
    pretend_missing(SYS_stat),
    pretend_missing(SYS_readlink),
    pretend_missing(SYS_getcwd),
];

/// The same for threads that open files below descriptors.
pub(super) const NO_PATHS: &[Rule] = &[
    pretend_missing(SYS_open),
    pretend_missing(SYS_stat),
    pretend_missing(SYS_readlink),
    pretend_missing(SYS_getcwd),
];

/// Requests to KVM (`<linux/kvm.h>`).
pub(super) const KVM_RUN: u32 = 0xae80;
pub(super) const KVM_IRQ_LINE: u32 = 0x4008_ae61;
pub(super) const KVM_GET_REGS: u32 = 0x8090_ae81;
pub(super) const KVM_GET_SREGS: u32 = 0x8138_ae83;
pub(super) const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
