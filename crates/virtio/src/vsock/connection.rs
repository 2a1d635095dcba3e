//! One connection: its stream, its buffer, its credit.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown, sendmsg, shutdown};

use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::{HOST_CID, packet};
use crate::guest_io::GuestIoVec;
use crate::{Interest, Source};

/// A buffer that has grown beyond this is given back once it is empty.
const KEEP_CAPACITY: usize = 16 << 10;

/// The two ports of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) host_port: u32,
    pub(super) guest_port: u32,
}

/// Packets that wait for a buffer of the guest.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) request: bool,
    pub(super) response: bool,
    pub(super) reset: bool,
    pub(super) credit_update: bool,
    pub(super) credit_request: bool,
    /// Flags of a shutdown.
    pub(super) shutdown: u32,
    /// The stream has, or may have, something to read.
    pub(super) read: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host has asked; the number is the request's.
    Connecting(u64),
    Established,
}

pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) phase: Phase,
    pub(super) wishes: Wishes,
    /// In the list of those that have wishes.
    pub(super) listed: bool,
    /// `None` when the host side is gone, or the guest has ended both directions.
    stream: Option<Source<OwnedFd>>,
    /// From the guest, not taken by the host side yet.
    buffer: VecDeque<u8>,
    /// What the guest was promised.
    pub(super) buf_alloc: u32,
    /// Bytes received from the guest, and of these taken by the host side (both wrapping).
    received: u32,
    forwarded: u32,
    /// What the guest knows of `forwarded`.
    told_forwarded: u32,
    /// Bytes sent to the guest (wrapping), and its last word on its buffer.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// No credit: nothing is read before the guest gives some.
    starved: bool,
    /// The stream has ended; nothing more to read.
    host_ended: bool,
    /// The stream is gone in both directions.
    host_gone: bool,
    /// What the guest has shut down.
    guest_shutdown: u32,
    /// What the guest was told to be shut down.
    told_shutdown: u32,
    /// The guest is done with it; only the buffer is still to go out.
    detached: bool,
}

impl Connection {
    pub(super) fn new(key: Key, phase: Phase, stream: Source<OwnedFd>, buf_alloc: u32) -> Self {
        Self {
            key,
            phase,
            wishes: Wishes::default(),
            listed: false,
            stream: Some(stream),
            buffer: VecDeque::new(),
            buf_alloc,
            received: 0,
            forwarded: 0,
            told_forwarded: 0,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            starved: false,
            host_ended: false,
            host_gone: false,
            guest_shutdown: 0,
            told_shutdown: 0,
            detached: false,
        }
    }

    /// A header of this connection with the present credit, of which the guest knows from then on.
    pub(super) fn header(&mut self, guest_cid: u64, op: Op, len: u32) -> Header {
        self.told_forwarded = self.forwarded;
        self.wishes.credit_update = false;
        self.sent = self.sent.wrapping_add(len);
        Header {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op: Some(op),
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.forwarded,
        }
    }

    /// The next packet without data that the guest is to get.
    pub(super) fn next_control(&mut self, guest_cid: u64) -> Option<Header> {
        let wishes = &mut self.wishes;
        let op = if std::mem::take(&mut wishes.reset) {
            Op::Reset
        } else if std::mem::take(&mut wishes.request) {
            Op::Request
        } else if std::mem::take(&mut wishes.response) {
            Op::Response
        } else if std::mem::take(&mut wishes.credit_request) {
            Op::CreditRequest
        } else if wishes.credit_update {
            Op::CreditUpdate
        } else if wishes.shutdown & !self.told_shutdown != 0 {
            self.told_shutdown |= std::mem::take(&mut wishes.shutdown);
            let mut header = self.header(guest_cid, Op::Shutdown, 0);
            header.flags = self.told_shutdown;
            return Some(header);
        } else {
            return None;
        };
        Some(self.header(guest_cid, op, 0))
    }

    pub(super) fn has_wishes(&self) -> bool {
        if self.detached {
            return false;
        }
        let Wishes {
            request,
            response,
            reset,
            credit_update,
            credit_request,
            shutdown,
            read,
        } = self.wishes;
        let control = request || response || reset || credit_update || credit_request;
        control || shutdown & !self.told_shutdown != 0 || read
    }

    /// The guest tells its buffer space. Reading goes on if it was waiting for it.
    pub(super) fn take_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if self.starved && self.credit() > 0 {
            self.starved = false;
            self.wishes.read = true;
        }
    }

    /// Bytes that the guest has room for. A guest that contradicts itself has none.
    pub(super) fn credit(&self) -> u32 {
        self.peer_buf_alloc
            .saturating_sub(self.sent.wrapping_sub(self.peer_fwd_cnt))
    }

    pub(super) fn is_readable(&self) -> bool {
        self.phase == Phase::Established
            && !self.host_ended
            && self.guest_shutdown & SHUTDOWN_RECEIVE == 0
            && self.stream.is_some()
    }

    /// Nothing can be read before the guest gives credit.
    pub(super) fn starve(&mut self) {
        self.wishes.read = false;
        self.wishes.credit_request = !self.starved;
        self.starved = true;
    }

    /// Reads from the stream into buffers of the guest.
    pub(super) fn read(&mut self, buffers: &GuestIoVec<'_>) -> Read {
        let Some(stream) = &self.stream else {
            return Read::Ended;
        };
        match buffers.receive(stream) {
            Ok(0) => {}
            Ok(count) => return Read::Data(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Empty,
            Err(_) => self.host_gone = true,
        }
        self.host_ended = true;
        self.wishes.shutdown |= if self.host_gone {
            SHUTDOWN_BOTH
        } else {
            SHUTDOWN_SEND
        };
        Read::Ended
    }

    /// The other end of the stream was closed. What it sent before can still be read.
    pub(super) fn hang_up(&mut self) {
        self.host_gone = true;
        self.buffer = VecDeque::new();
        if self.host_ended || !self.is_readable() {
            self.lose_stream();
        } else {
            self.wishes.read = !self.starved;
        }
    }

    fn lose_stream(&mut self) {
        self.host_ended = true;
        self.wishes.read = false;
        self.wishes.shutdown |= SHUTDOWN_BOTH;
        self.stream = None;
    }

    /// Takes data from the guest. `false` if it is more than it was allowed to send.
    pub(super) fn write(&mut self, data: &GuestIoVec<'_>) -> bool {
        let len = data.len();
        let outstanding = self.received.wrapping_sub(self.forwarded);
        let room = self.buf_alloc.saturating_sub(outstanding);
        if len > room as usize || self.guest_shutdown & SHUTDOWN_SEND != 0 {
            return false;
        }
        self.received = self.received.wrapping_add(len as u32);
        let mut rest = data.clone();
        if self.buffer.is_empty() && !self.host_gone {
            match self.stream.as_ref().map(|stream| rest.send(stream)) {
                Some(Ok(sent)) => {
                    self.forward(sent);
                    rest.advance(sent);
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                _ => self.host_gone = true,
            }
        }
        if self.host_gone {
            // Nobody will read it; the guest gets to know.
            self.forward(rest.len());
            self.wishes.shutdown |= SHUTDOWN_RECEIVE;
            return true;
        }
        for slice in rest.slices() {
            let mut chunk = vec![0; slice.len()];
            slice.copy_to(&mut chunk[..]);
            self.buffer.extend(chunk);
        }
        true
    }

    fn forward(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        // Told when the guest could believe that half of the buffer is taken; any other packet tells it too.
        let believed = self.received.wrapping_sub(self.told_forwarded);
        self.wishes.credit_update |=
            believed > self.buf_alloc / 2 && self.forwarded != self.told_forwarded;
    }

    /// Moves the buffer on to the stream.
    pub(super) fn flush(&mut self) {
        while let (Some(stream), false) = (&self.stream, self.buffer.is_empty()) {
            let (front, back) = self.buffer.as_slices();
            let slices = [IoSlice::new(front), IoSlice::new(back)];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(stream, &slices, &mut SendAncillaryBuffer::default(), flags) {
                Ok(sent) => {
                    self.buffer.drain(..sent.min(self.buffer.len()));
                    self.forward(sent);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    let lost = self.buffer.len();
                    self.buffer = VecDeque::new();
                    self.forward(lost);
                    self.host_gone = true;
                    self.wishes.shutdown |= SHUTDOWN_RECEIVE;
                }
            }
        }
        if self.buffer.is_empty() {
            if self.buffer.capacity() > KEEP_CAPACITY {
                self.buffer = VecDeque::new();
            }
            if self.guest_shutdown & SHUTDOWN_SEND != 0 {
                self.end_stream(Shutdown::Write);
            }
        }
    }

    /// The guest has shut directions down. Returns whether both are now.
    pub(super) fn shut_down(&mut self, flags: u32) -> bool {
        self.guest_shutdown |= flags & SHUTDOWN_BOTH;
        if self.guest_shutdown & SHUTDOWN_RECEIVE != 0 {
            self.wishes.read = false;
            self.end_stream(Shutdown::Read);
        }
        if self.guest_shutdown & SHUTDOWN_SEND != 0 && self.buffer.is_empty() {
            self.end_stream(Shutdown::Write);
        }
        self.guest_shutdown == packet::SHUTDOWN_BOTH
    }

    fn end_stream(&self, direction: Shutdown) {
        if let Some(stream) = &self.stream {
            // It fails when the other end is gone, which comes to the same.
            let _ = shutdown(stream, direction);
        }
    }

    /// Whether the host side has still to take something that the guest sent before it was done.
    pub(super) fn must_linger(&self) -> bool {
        let sent_all = self.guest_shutdown & SHUTDOWN_SEND != 0;
        sent_all && self.stream.is_some() && !self.buffer.is_empty() && !self.host_gone
    }

    /// Whether it lingered for nothing but its buffer, and that is empty.
    pub(super) fn is_finished(&self) -> bool {
        self.detached && (self.buffer.is_empty() || self.host_gone)
    }

    /// Forgets the guest; only the buffer is still to go out.
    pub(super) fn detach(&mut self) {
        self.guest_shutdown = SHUTDOWN_BOTH;
        self.wishes = Wishes::default();
        self.detached = true;
        self.end_stream(Shutdown::Read);
    }

    /// Watches the stream for what can be dealt with now.
    pub(super) fn watch(&mut self) -> io::Result<()> {
        let reading = self.is_readable() && !self.wishes.read && !self.starved;
        let writing = !self.buffer.is_empty();
        let gone = self.host_gone;
        let Some(stream) = &mut self.stream else {
            return Ok(());
        };
        let idle = if gone { None } else { Some(Interest::Hangup) };
        stream.watch(Interest::from_wishes(reading, writing).or(idle))
    }
}

/// What reading from a stream gave.
pub(super) enum Read {
    /// That many bytes.
    Data(usize),
    /// Nothing for now.
    Empty,
    /// Nothing ever again.
    Ended,
}
