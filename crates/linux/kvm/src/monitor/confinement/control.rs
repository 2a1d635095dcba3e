//! The monitor's first thread, once the machine runs: it answers the library's requests and waits for
//! the end.

use capsa_process::confine::lists::{EVERY_THREAD, NO_BACKTRACE, OPEN_FILES};
use capsa_process::confine::{Policy, Rule, allow};
use libc::*;

pub(super) const POLICY: Policy = Policy {
    thread: "control",
    // Disks that grow, and those that end: what they have in flight, and what an image has in memory
    rules: &[EVERY_THREAD, NO_BACKTRACE, RULES, OPEN_FILES],
};

pub(super) const RULES: &[Rule] = &[
    allow(SYS_poll),
    allow(SYS_ppoll),
    allow(SYS_recvmsg),
    allow(SYS_sendmsg),
    allow(SYS_sendto),
    // The power button is an interrupt
    allow(SYS_ioctl),
    // Devices that end: what they watched
    allow(SYS_epoll_ctl),
    allow(SYS_timerfd_settime),
    allow(SYS_shutdown),
];
