//! vCPU threads: they run the guest, and carry out what its drivers write to device registers, which
//! is where devices are set up and torn down.

use capsa_process::confine::When::Is;
use capsa_process::confine::lists::{EVERY_THREAD, NO_BACKTRACE};
use capsa_process::confine::{Policy, Rule, allow, allow_when};
use libc::*;

use super::common::{KVM_GET_REGS, KVM_GET_SREGS, KVM_IRQ_LINE, KVM_KVMCLOCK_CTRL, KVM_RUN};

pub(super) const POLICY: Policy = Policy {
    thread: "vCPU",
    rules: &[EVERY_THREAD, NO_BACKTRACE, RULES],
};

/// The signal that interrupts a vCPU, `SIGRTMIN` + 7 of the C library's count.
const KICK: u32 = 41;

pub(super) const RULES: &[Rule] = &[
    // The guest, and interrupts for it
    allow_when(SYS_ioctl, &[Is(1, KVM_RUN)]),
    allow_when(SYS_ioctl, &[Is(1, KVM_KVMCLOCK_CTRL)]),
    allow_when(SYS_ioctl, &[Is(1, KVM_IRQ_LINE)]),
    // What the guest was at when it failed
    allow_when(SYS_ioctl, &[Is(1, KVM_GET_REGS)]),
    allow_when(SYS_ioctl, &[Is(1, KVM_GET_SREGS)]),
    allow_when(SYS_rt_sigaction, &[Is(0, KICK)]),
    // Setting up a device's events
    allow(SYS_eventfd2),
    allow(SYS_epoll_ctl),
    allow(SYS_timerfd_create),
    allow(SYS_timerfd_settime),
    allow_when(SYS_fcntl, &[Is(1, F_DUPFD_CLOEXEC as u32)]),
    // What a reset device says to its peers: the console's bytes, the ends of connections
    allow(SYS_writev),
    allow(SYS_sendto),
    allow(SYS_sendmsg),
    allow(SYS_recvfrom),
    allow(SYS_recvmsg),
    allow(SYS_shutdown),
    // What a reset disk has in flight comes to its end
    allow(SYS_io_uring_enter),
    allow(SYS_fdatasync),
];
