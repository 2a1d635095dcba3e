//! The monitor's first thread while it loads the kernel, makes the devices and starts the threads. Those
//! inherit this policy and put their own on top of it, so that it has what they have as well.

use capsa_process::confine::When::{Is, With};
use capsa_process::confine::{Policy, Rule, allow, allow_when, pretend_missing};
use libc::*;

use super::common::EVERY_THREAD;
use super::{control, devices, files, serial, vcpu};

pub(super) const POLICY: Policy = Policy {
    thread: "starting",
    rules: &[
        EVERY_THREAD,
        RULES,
        control::RULES,
        vcpu::RULES,
        serial::RULES,
        devices::EVENT_LOOP,
        devices::RULES,
        files::OPEN_FILES,
        files::DIRECTORIES,
    ],
};

const RULES: &[Rule] = &[
    // KVM's many requests
    allow(SYS_ioctl),
    // Event loops, and the rings of disks
    allow(SYS_epoll_create1),
    allow(SYS_io_uring_setup),
    allow(SYS_io_uring_register),
    // Threads, and no processes; the C library falls back to the call whose flags can be looked at
    allow_when(SYS_clone, &[With(0, NEW_THREAD)]),
    pretend_missing(SYS_clone3),
    allow(SYS_set_robust_list),
    allow(SYS_rseq),
    allow(SYS_sched_getaffinity),
    allow_when(SYS_prctl, &[Is(0, PR_SET_NAME as u32)]),
    // Their own policies
    allow_when(SYS_prctl, &[Is(0, PR_SET_NO_NEW_PRIVS as u32)]),
    allow(SYS_seccomp),
    allow(SYS_rt_sigaction),
    // What the threads' own lists make look missing: of several answers the strictest counts
    allow(SYS_open),
    allow(SYS_stat),
    allow(SYS_readlink),
    allow(SYS_getcwd),
    // Limits on the files of a share
    allow_when(SYS_prlimit64, &[Is(0, 0)]),
];

const NEW_THREAD: u64 = (CLONE_THREAD | CLONE_VM | CLONE_SIGHAND) as u64;
