//! Several datagrams in as many system calls.

use std::io::{self, IoSliceMut};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, ReturnFlags, recvmsg};

use super::Slot;

/// Receives datagrams that are there already into `slots`, each behind its first `skip` bytes, and
/// returns how many there were. A length of 0 in a slot means the end of a connection.
///
/// # Errors
/// `WouldBlock` when there is none.
pub(crate) fn receive_many(
    fd: BorrowedFd<'_>,
    slots: &mut [Slot],
    skip: usize,
) -> io::Result<usize> {
    let mut received = 0;
    for slot in slots {
        let target = slot.bytes.get_mut(skip..).unwrap_or_default();
        let mut none = RecvAncillaryBuffer::default();
        let message = recvmsg(
            fd,
            &mut [IoSliceMut::new(target)],
            &mut none,
            RecvFlags::DONTWAIT,
        );
        match message {
            Ok(message) => {
                slot.len = message.bytes;
                slot.truncated = message.flags.contains(ReturnFlags::TRUNC);
                received += 1;
            }
            Err(Errno::AGAIN) if received > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(received)
}
