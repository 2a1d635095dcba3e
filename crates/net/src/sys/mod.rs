//! What differs between operating systems, and the socket calls that have errors of their own.

use rustix::net::SendFlags;

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) use linux::receive_many;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod portable;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) use portable::receive_many;

/// A peer that has gone is an error, not a signal. Elsewhere the standard library ignores the signal
/// for the whole process.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const NO_SIGNAL: SendFlags = SendFlags::NOSIGNAL;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) const NO_SIGNAL: SendFlags = SendFlags::empty();

mod sockets;
pub(crate) use sockets::*;

mod ancillary;
pub(crate) use ancillary::{receive_with_fds, send_with_fds};

/// One buffer of a batch of datagrams, and how much of it the system filled.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) bytes: Vec<u8>,
    pub(crate) len: usize,
    /// Whether the datagram was longer than the buffer.
    pub(crate) truncated: bool,
}

impl Slot {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity],
            len: 0,
            truncated: false,
        }
    }
}
