//! Locks that belong to the open file (OFD locks): they hold wherever the descriptor goes, and end with the last copy.
//!
//! They cover the whole file, so that QEMU, which locks single bytes of it, is kept out too.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Takes a lock for one writer, or for many readers. Returns whether it was free.
pub(super) fn try_lock(file: &File, write: bool) -> io::Result<bool> {
    // SAFETY: all zeroes is a valid flock: from the start, to the end, no process.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = if write { libc::F_WRLCK } else { libc::F_RDLCK } as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    // SAFETY: the call reads one flock, which is there.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        _ => Err(error),
    }
}
