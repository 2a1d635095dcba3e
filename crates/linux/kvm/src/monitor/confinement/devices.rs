//! The thread of devices that never wait for files: console, entropy, balloon, sockets, network.

use capsa_process::confine::When::Is;
use capsa_process::confine::{Policy, Rule, allow, allow_when};
use libc::*;

use super::common::{EVERY_THREAD, KVM_IRQ_LINE, NO_BACKTRACE};

pub(super) const POLICY: Policy = Policy {
    thread: "device",
    rules: &[EVERY_THREAD, NO_BACKTRACE, EVENT_LOOP, RULES],
};

/// The loop that every device thread turns.
pub(super) const EVENT_LOOP: &[Rule] = &[
    allow(SYS_epoll_wait),
    allow(SYS_epoll_pwait),
    allow(SYS_epoll_pwait2),
    allow(SYS_epoll_ctl),
    allow(SYS_eventfd2),
    allow(SYS_timerfd_create),
    allow(SYS_timerfd_settime),
    // Interrupts for the guest
    allow_when(SYS_ioctl, &[Is(1, KVM_IRQ_LINE)]),
];

pub(super) const RULES: &[Rule] = &[
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
