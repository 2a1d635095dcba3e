//! The thread that moves bytes between serial port and socket.

use capsa_process::confine::When::Is;
use capsa_process::confine::lists::{EVERY_THREAD, NO_BACKTRACE};
use capsa_process::confine::{Policy, Rule, allow, allow_when};
use libc::*;

use super::common::KVM_IRQ_LINE;

pub(super) const POLICY: Policy = Policy {
    thread: "serial port",
    rules: &[EVERY_THREAD, NO_BACKTRACE, RULES],
};

pub(super) const RULES: &[Rule] = &[
    allow(SYS_epoll_wait),
    allow(SYS_epoll_pwait),
    allow(SYS_epoll_ctl),
    allow(SYS_poll),
    allow(SYS_ppoll),
    allow(SYS_readv),
    allow(SYS_writev),
    allow(SYS_sendmsg),
    allow(SYS_recvmsg),
    allow(SYS_sendto),
    allow(SYS_recvfrom),
    allow_when(SYS_ioctl, &[Is(1, KVM_IRQ_LINE)]),
];
