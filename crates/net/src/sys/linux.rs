//! Several datagrams in one system call.
#![allow(unsafe_code)] // recvmmsg has no safe wrapper; the block below is the crate's only one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Slot;

/// The most datagrams of one call.
const BATCH: usize = 64;

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
    let count = slots.len().min(BATCH);
    let empty_iov = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    let mut iovs = [empty_iov; BATCH];
    // SAFETY: `mmsghdr` is plain integers and pointers, for all of which zero is a valid value.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for ((slot, iov), header) in slots.iter_mut().zip(&mut iovs).zip(&mut headers) {
        let target = slot.bytes.get_mut(skip..).unwrap_or_default();
        iov.iov_base = target.as_mut_ptr().cast();
        iov.iov_len = target.len();
        header.msg_hdr.msg_iov = iov;
        header.msg_hdr.msg_iovlen = 1;
    }
    // SAFETY: the first `count` headers point to the `count` vectors above, each of which points
    // to a buffer that `slots` owns and lends mutably for the whole call; no names, no control data.
    let received = unsafe {
        libc::recvmmsg(
            fd.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    for (slot, header) in slots.iter_mut().zip(&headers).take(received) {
        slot.len = header.msg_len as usize;
        slot.truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
    }
    Ok(received.min(count))
}
