//! The socket that carries a guest's frames.

use std::collections::VecDeque;
use std::io;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::send;

use crate::FrameFormat;
use crate::sys::{self, Slot};
use crate::wire::frame::{Accepts, Frame, FramePool, Offload};
use crate::wire::{MAX_FRAME, VNET, offload};

/// Frames of one batch.
pub(crate) const BATCH: usize = 64;
/// The largest datagram on a virtio link that is no frame: what the other side takes, see
/// [`offer_offloads`].
const OFFER_LEN: usize = VNET + 2;

/// What a guest's driver takes, told to the network on a [`FrameFormat::Virtio`] link by the
/// monitor whenever the driver has negotiated its features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames whose checksum is not finished (`VIRTIO_NET_F_GUEST_CSUM`).
    pub checksum: bool,
    /// TCP segments over IPv4 of up to 64 KiB (`VIRTIO_NET_F_GUEST_TSO4`).
    pub tcp4: bool,
    /// TCP segments over IPv6 of up to 64 KiB (`VIRTIO_NET_F_GUEST_TSO6`).
    pub tcp6: bool,
}

/// The datagram by which a monitor says what its guest takes, to be sent on the frame socket: a
/// virtio-net header of zeroes and two bytes, a 1 and the set of what is taken.
pub const fn offer_offloads(offloads: Offloads) -> [u8; OFFER_LEN] {
    let mut message = [0; OFFER_LEN];
    let [.., version, set] = &mut message;
    *version = 1;
    *set = offloads.checksum as u8 | (offloads.tcp4 as u8) << 1 | (offloads.tcp6 as u8) << 2;
    message
}

/// Buffers for a batch of frames from guests.
#[derive(Debug)]
pub(crate) struct Arena(pub(crate) Vec<Slot>);

impl Arena {
    pub(crate) fn new() -> Self {
        Self((0..BATCH).map(|_| Slot::new(VNET + MAX_FRAME)).collect())
    }
}

/// How a batch went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Batch {
    /// This many slots were filled, and there may be more where they came from.
    Frames(usize),
    /// There is nothing more for now.
    Empty,
    /// The other side is gone.
    Closed,
}

/// One guest's frame socket.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    format: FrameFormat,
    accepts: Accepts,
    /// Bytes of a stream that are not a whole frame yet, and those that did not go out yet.
    received: Vec<u8>,
    unsent: Vec<u8>,
    unsent_at: usize,
}

impl Link {
    pub(crate) fn new(fd: OwnedFd, format: FrameFormat) -> io::Result<Self> {
        sys::set_nonblocking(fd.as_fd())?;
        sys::enlarge_buffers(fd.as_fd());
        Ok(Self {
            fd,
            format,
            accepts: Accepts::default(),
            received: Vec::new(),
            unsent: Vec::new(),
            unsent_at: 0,
        })
    }

    pub(crate) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    pub(crate) const fn accepts(&self) -> Accepts {
        self.accepts
    }

    /// Fills slots with frames: virtio-net header, Ethernet frame; `len` counts both.
    pub(crate) fn receive(&mut self, arena: &mut Arena) -> Batch {
        let result = match self.format {
            FrameFormat::Stream => self.receive_stream(arena),
            FrameFormat::Datagram => receive_datagrams(self.fd.as_fd(), arena, VNET),
            FrameFormat::Virtio => receive_datagrams(self.fd.as_fd(), arena, 0),
        };
        match result {
            Ok(batch) => batch,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Batch::Empty,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Batch::Frames(0),
            Err(_) => Batch::Closed,
        }
    }

    /// Reads a datagram of a virtio link that is no frame. True when it was one.
    pub(crate) fn take_offer(&mut self, with_header: &[u8]) -> bool {
        if self.format != FrameFormat::Virtio || with_header.len() != OFFER_LEN {
            return false;
        }
        if let [.., 1, set] = with_header {
            self.accepts = Accepts {
                checksum: set & 1 != 0,
                tcp4: set & 2 != 0,
                tcp6: set & 4 != 0,
            };
        }
        true
    }

    fn receive_stream(&mut self, arena: &mut Arena) -> io::Result<Batch> {
        const CHUNK: usize = 256 << 10;
        let have = self.received.len();
        self.received.resize(have + CHUNK, 0);
        let target = self.received.get_mut(have..).unwrap_or_default();
        let read = rustix::io::read(&self.fd, target);
        self.received.truncate(have + *read.as_ref().unwrap_or(&0));
        let end = read == Ok(0);
        if let Err(error) = read
            && error != Errno::AGAIN
        {
            return Err(error.into());
        }
        let mut at = 0;
        let mut filled = 0;
        while let Some(slot) = arena.0.get_mut(filled) {
            let rest = self.received.get(at..).unwrap_or_default();
            let Some((prefix, rest)) = rest.split_first_chunk::<4>() else {
                break;
            };
            let length = u32::from_be_bytes(*prefix) as usize;
            if length > MAX_FRAME {
                return Ok(Batch::Closed); // out of step: there is no way back into a stream
            }
            let Some(frame) = rest.get(..length) else {
                break;
            };
            crate::bytes::put(&mut slot.bytes, VNET, frame);
            slot.bytes.get_mut(..VNET).unwrap_or_default().fill(0);
            slot.len = VNET + length;
            slot.truncated = false;
            at += 4 + length;
            filled += 1;
        }
        self.received.drain(..at);
        match (filled, end, read) {
            (0, true, _) => Ok(Batch::Closed),
            (0, false, Err(_)) => Ok(Batch::Empty),
            _ => Ok(Batch::Frames(filled)),
        }
    }

    /// Sends as many frames as the other side takes now; true when the queue is empty.
    ///
    /// # Errors
    /// When the other side is gone.
    pub(crate) fn send(
        &mut self,
        queue: &mut VecDeque<Frame>,
        pool: &mut FramePool,
    ) -> io::Result<bool> {
        match self.format {
            FrameFormat::Stream => self.send_stream(queue, pool),
            FrameFormat::Datagram => self.send_datagrams(queue, pool, VNET),
            FrameFormat::Virtio => self.send_datagrams(queue, pool, 0),
        }
    }

    fn send_datagrams(
        &mut self,
        queue: &mut VecDeque<Frame>,
        pool: &mut FramePool,
        skip: usize,
    ) -> io::Result<bool> {
        while !queue.is_empty() {
            let frames = queue.iter().take(BATCH).map(|frame| {
                let bytes = frame.with_header().get(skip..).unwrap_or_default();
                IoSlice::new(bytes)
            });
            let slices: Vec<IoSlice<'_>> = frames.collect();
            let sent = match send_many(self.fd.as_fd(), &slices) {
                Ok(sent) => sent,
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(false),
                Err(Errno::INTR) => continue,
                // Too long for this socket: it never goes out, so it must not hold up the others.
                Err(Errno::MSGSIZE) => 1,
                Err(error) => return Err(error.into()),
            };
            for frame in queue.drain(..sent.min(queue.len())) {
                pool.recycle(frame);
            }
        }
        Ok(true)
    }

    fn send_stream(
        &mut self,
        queue: &mut VecDeque<Frame>,
        pool: &mut FramePool,
    ) -> io::Result<bool> {
        const MOST: usize = 256 << 10;
        loop {
            while self.unsent.len() < MOST
                && let Some(frame) = queue.pop_front()
            {
                let ethernet = frame.ethernet();
                let length = u32::try_from(ethernet.len()).unwrap_or_default();
                self.unsent.extend_from_slice(&length.to_be_bytes());
                self.unsent.extend_from_slice(ethernet);
                pool.recycle(frame);
            }
            let rest = self.unsent.get(self.unsent_at..).unwrap_or_default();
            if rest.is_empty() {
                self.unsent.clear();
                self.unsent_at = 0;
                if queue.is_empty() {
                    return Ok(true);
                }
                continue;
            }
            match send(&self.fd, rest, crate::sys::NO_SIGNAL) {
                Ok(sent) => self.unsent_at += sent,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Finishes what the frame's header leaves open and this link's other side does not take.
    pub(crate) fn finish(&self, frame: Frame, pool: &mut FramePool, emit: impl FnMut(Frame)) {
        if frame.offload() == Offload::default() {
            let mut emit = emit;
            return emit(frame);
        }
        offload::finish(frame, self.accepts, pool, emit);
    }
}

fn receive_datagrams(fd: BorrowedFd<'_>, arena: &mut Arena, skip: usize) -> io::Result<Batch> {
    let received = sys::receive_many(fd, &mut arena.0, skip)?;
    for (index, slot) in arena.0.iter_mut().take(received).enumerate() {
        if slot.len == 0 {
            // A connection's end repeats itself, so what came before it can be handled first.
            return Ok(if index == 0 {
                Batch::Closed
            } else {
                Batch::Frames(index)
            });
        }
        slot.len += skip;
        slot.bytes.get_mut(..skip).unwrap_or_default().fill(0);
    }
    Ok(Batch::Frames(received))
}

#[cfg(target_os = "linux")]
fn send_many(fd: BorrowedFd<'_>, frames: &[IoSlice<'_>]) -> Result<usize, Errno> {
    use rustix::net::{MMsgHdr, SendAncillaryBuffer, sendmmsg};
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> = frames
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let mut headers: Vec<MMsgHdr<'_>> = frames
        .iter()
        .zip(&mut controls)
        .map(|(frame, control)| MMsgHdr::new(std::slice::from_ref(frame), control))
        .collect();
    sendmmsg(fd, &mut headers, crate::sys::NO_SIGNAL)
}

#[cfg(not(target_os = "linux"))]
fn send_many(fd: BorrowedFd<'_>, frames: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let mut sent = 0;
    for frame in frames {
        match send(fd, frame, crate::sys::NO_SIGNAL) {
            Ok(_) => sent += 1,
            Err(_) if sent > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}
