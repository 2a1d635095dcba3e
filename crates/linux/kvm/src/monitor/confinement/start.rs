//! The monitor's first thread while it loads the kernel, makes the devices and starts the threads. Those
//! inherit this policy and put their own on top of it, so that it has what they have as well.

use capsa_process::confine::When::Is;
use capsa_process::confine::lists::{
    DIRECTORIES, EVENT_LOOP, EVERY_THREAD, NEW_DEVICES, NEW_THREADS, OPEN_FILES, SOCKETS,
};
use capsa_process::confine::{Policy, Rule, allow, allow_when};
use libc::*;

use super::{control, devices, serial, vcpu};

pub(super) const POLICY: Policy = Policy {
    thread: "starting",
    rules: &[
        EVERY_THREAD,
        RULES,
        control::RULES,
        vcpu::RULES,
        serial::RULES,
        NEW_THREADS,
        NEW_DEVICES,
        EVENT_LOOP,
        SOCKETS,
        devices::INTERRUPTS,
        OPEN_FILES,
        DIRECTORIES,
    ],
};

const RULES: &[Rule] = &[
    // KVM's many requests
    allow(SYS_ioctl),
    // Their own policies
    allow_when(SYS_prctl, &[Is(0, PR_SET_NO_NEW_PRIVS as u32)]),
    allow(SYS_seccomp),
    allow(SYS_rt_sigaction),
    // What the threads' own lists make look missing: of several answers the strictest counts
    allow(SYS_open),
    allow(SYS_stat),
    allow(SYS_readlink),
    allow(SYS_getcwd),
];
