//! The thread of devices that never wait for files: console, entropy, balloon, sockets, network.

use capsa_process::confine::When::Is;
use capsa_process::confine::lists::{EVENT_LOOP, EVERY_THREAD, NO_BACKTRACE, SOCKETS};
use capsa_process::confine::{Policy, Rule, allow_when};
use libc::*;

use super::common::KVM_IRQ_LINE;

pub(super) const POLICY: Policy = Policy {
    thread: "device",
    rules: &[EVERY_THREAD, NO_BACKTRACE, EVENT_LOOP, SOCKETS, INTERRUPTS],
};

/// Interrupts for the guest.
pub(super) const INTERRUPTS: &[Rule] = &[allow_when(SYS_ioctl, &[Is(1, KVM_IRQ_LINE)])];
