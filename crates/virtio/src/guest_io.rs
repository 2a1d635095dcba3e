//! Vectored input and output between host descriptors and guest memory, without a copy in between.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::{GuestMemoryBackend, VolatileSlice};

use crate::{GuestRam, QueueError, Segment};

/// Most buffers that one system call takes (`IOV_MAX`).
pub const MAX_IO_VECTORS: usize = 1024;

/// Guest buffers as the system's vectored calls take them, borrowed from one generation of guest memory.
#[derive(Default, Clone)]
pub struct GuestIoVec<'m> {
    slices: Vec<VolatileSlice<'m, ()>>,
    len: usize,
}

impl<'m> GuestIoVec<'m> {
    /// Finds the host's view of `segments`.
    ///
    /// # Errors
    /// A segment is not in guest memory.
    pub fn new(
        ram: &'m GuestRam,
        segments: impl IntoIterator<Item = Segment>,
    ) -> Result<Self, QueueError> {
        let mut this = Self::default();
        for segment in segments {
            this.add(ram, segment)?;
        }
        Ok(this)
    }

    /// A buffer of this process instead, for what must not change while it is looked at.
    pub fn from_host(buffer: &'m mut [u8]) -> Self {
        let len = buffer.len();
        Self {
            slices: vec![VolatileSlice::from(buffer)],
            len,
        }
    }

    /// Appends a segment.
    ///
    /// # Errors
    /// It is not in guest memory.
    pub fn add(&mut self, ram: &'m GuestRam, segment: Segment) -> Result<(), QueueError> {
        let outside = QueueError::BufferOutside {
            address: segment.addr.0,
            len: segment.len,
        };
        for slice in GuestMemoryBackend::get_slices(ram, segment.addr, segment.len as usize) {
            let slice = slice.map_err(|_| outside)?;
            self.len += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    /// Bytes in all buffers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of separate buffers.
    pub fn count(&self) -> usize {
        self.slices.len()
    }

    /// The buffers, for callers that copy by themselves.
    pub fn slices(&self) -> &[VolatileSlice<'m, ()>] {
        &self.slices
    }

    /// Drops the first `count` bytes, at most all.
    pub fn advance(&mut self, count: usize) {
        let mut count = count.min(self.len);
        self.len -= count;
        let mut whole = 0;
        for slice in &mut self.slices {
            if count < slice.len() {
                if let Ok(rest) = slice.offset(count) {
                    *slice = rest;
                }
                break;
            }
            count -= slice.len();
            whole += 1;
        }
        self.slices.drain(..whole);
    }

    /// Fills all buffers with zeroes.
    pub fn fill_zeroes(&self) {
        let zeroes = [0u8; 4096];
        for slice in &self.slices {
            let mut rest = Ok(*slice);
            while let Ok(here) = rest
                && !here.is_empty()
            {
                let count = here.len().min(zeroes.len());
                here.copy_from(zeroes.split_at(count).0);
                rest = here.offset(count);
            }
        }
    }

    /// The buffers as `struct iovec`, at most [`MAX_IO_VECTORS`]. Valid as long as `'m`.
    pub fn to_iovecs(&self) -> Vec<libc::iovec> {
        self.slices
            .iter()
            .take(MAX_IO_VECTORS)
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect()
    }

    /// `preadv(2)` into the buffers. Returns the bytes read, 0 at the end of the file.
    ///
    /// # Errors
    /// What the system said.
    pub fn read_at(&self, fd: impl AsFd, offset: u64) -> io::Result<usize> {
        let (iov, offset) = (self.to_iovecs(), file_offset(offset)?);
        retry(|| {
            // SAFETY: the iovecs lie in guest memory mapped for 'm; the guest expects it to change under it.
            unsafe {
                libc::preadv(
                    fd.as_fd().as_raw_fd(),
                    iov.as_ptr(),
                    iov.len() as i32,
                    offset,
                )
            }
        })
    }

    /// `pwritev(2)` from the buffers. Returns the bytes written.
    ///
    /// # Errors
    /// What the system said.
    pub fn write_at(&self, fd: impl AsFd, offset: u64) -> io::Result<usize> {
        let (iov, offset) = (self.to_iovecs(), file_offset(offset)?);
        retry(|| {
            // SAFETY: the iovecs lie in guest memory mapped for 'm and are only read.
            unsafe {
                libc::pwritev(
                    fd.as_fd().as_raw_fd(),
                    iov.as_ptr(),
                    iov.len() as i32,
                    offset,
                )
            }
        })
    }

    /// Sends the buffers to a stream socket without blocking and without `SIGPIPE`.
    ///
    /// # Errors
    /// What the system said, [`io::ErrorKind::WouldBlock`] when the socket is full.
    pub fn send(&self, socket: impl AsFd) -> io::Result<usize> {
        let mut iov = self.to_iovecs();
        let message = message(&mut iov);
        retry(|| {
            // SAFETY: the message points to `iov`, which points to guest memory mapped for 'm.
            unsafe {
                libc::sendmsg(
                    socket.as_fd().as_raw_fd(),
                    &raw const message,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            }
        })
    }

    /// Receives from a socket into the buffers without blocking. Returns 0 at the end of a stream.
    ///
    /// # Errors
    /// What the system said, [`io::ErrorKind::WouldBlock`] when there is nothing.
    pub fn receive(&self, socket: impl AsFd) -> io::Result<usize> {
        let mut iov = self.to_iovecs();
        let mut message = message(&mut iov);
        retry(|| {
            // SAFETY: the message points to `iov`, which points to guest memory mapped for 'm.
            unsafe {
                libc::recvmsg(
                    socket.as_fd().as_raw_fd(),
                    &raw mut message,
                    libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                )
            }
        })
    }
}

impl GuestIoVec<'_> {
    /// Receives one message into the buffers, without blocking.
    ///
    /// # Errors
    /// What the system said, [`io::ErrorKind::WouldBlock`] when there is none.
    pub fn receive_message(&self, socket: impl AsFd) -> io::Result<ReceivedMessage> {
        let mut iov = self.to_iovecs();
        let mut message = message(&mut iov);
        let len = retry(|| {
            // SAFETY: the message points to `iov`, which points to guest memory mapped for as long as `self` is.
            unsafe {
                libc::recvmsg(
                    socket.as_fd().as_raw_fd(),
                    &raw mut message,
                    libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC,
                )
            }
        })?;
        Ok(ReceivedMessage {
            len,
            truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        })
    }
}

/// A message that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// Bytes received. 0 at the end of a connection.
    pub len: usize,
    /// Whether it was longer than there was room; the rest is lost.
    pub truncated: bool,
}

/// Sends one message from each of `messages` without blocking and without `SIGPIPE`; returns how many went out.
///
/// # Errors
/// What the system said to the first one, [`io::ErrorKind::WouldBlock`] when the socket is full.
pub fn send_messages(messages: &[GuestIoVec<'_>], socket: impl AsFd) -> io::Result<usize> {
    let mut iovs: Vec<Vec<libc::iovec>> = messages.iter().map(GuestIoVec::to_iovecs).collect();
    let mut headers: Vec<libc::mmsghdr> = iovs
        .iter_mut()
        .map(|iov| libc::mmsghdr {
            msg_hdr: message(iov),
            msg_len: 0,
        })
        .collect();
    let count = libc::c_uint::try_from(headers.len()).unwrap_or(libc::c_uint::MAX);
    retry(|| {
        // SAFETY: there are `count` headers, which point to `iovs`, which point to guest memory mapped for as long as
        // `messages` are borrowed; it is only read.
        unsafe {
            libc::sendmmsg(
                socket.as_fd().as_raw_fd(),
                headers.as_mut_ptr(),
                count,
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            ) as libc::ssize_t
        }
    })
}

/// The length of the next message of a socket, which stays there. 0 at the end of a connection.
///
/// # Errors
/// What the system said, [`io::ErrorKind::WouldBlock`] when there is none.
pub fn next_message_len(socket: impl AsFd) -> io::Result<usize> {
    retry(|| {
        // SAFETY: no byte is written, so that no buffer is needed.
        unsafe {
            libc::recv(
                socket.as_fd().as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT | libc::MSG_PEEK | libc::MSG_TRUNC,
            )
        }
    })
}

fn message(iov: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: all zeroes is a valid msghdr: no address, no buffers, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.as_mut_ptr();
    message.msg_iovlen = iov.len();
    message
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
