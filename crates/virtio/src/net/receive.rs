//! From the socket into the receive queue, each frame with one system call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use super::config::{
    ETHERNET, F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, F_MRG_RXBUF, HEADER, MAX_MESSAGE,
};
use super::metrics::{NetMetrics, count};
use crate::guest_io::{GuestIoVec, next_message_len};
use crate::queue::{Cursor, ShortBuffer};
use crate::{Chain, DeviceError, GuestRam, QueueError, Virtqueue};

/// Frames per call.
const BUDGET: u32 = 64;

const FLAG_NEEDS_CHECKSUM: u8 = 1;
const FLAG_CHECKED: u8 = 2;
const SEGMENT_NONE: u8 = 0;
const SEGMENT_TCP4: u8 = 1;
const SEGMENT_TCP6: u8 = 4;

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It waits for the socket or for the driver.
    Waits,
    /// It did as much as it may at once.
    More,
    /// The other side of the socket is gone.
    Closed,
}

/// Where the receiving half stands.
#[derive(Default)]
pub(super) struct Receive {
    waits_for_socket: bool,
    /// Chains taken and not yet filled, oldest first, and the bytes that they hold.
    taken: VecDeque<Chain>,
    room: usize,
}

impl Receive {
    /// Whether the socket is to be watched for reading. Not so while the guest has no buffers: its kick comes then.
    pub(super) fn waits_for_socket(&self) -> bool {
        self.waits_for_socket
    }

    /// Gives the chains that are not filled yet back to the queue.
    pub(super) fn withdraw(&mut self, queue: &mut Virtqueue) {
        self.taken.drain(..).for_each(|_| queue.undo_pop());
        self.room = 0;
        self.waits_for_socket = false;
    }

    pub(super) fn run(
        &mut self,
        queue: &mut Virtqueue,
        ram: &GuestRam,
        socket: &OwnedFd,
        features: u64,
        metrics: &NetMetrics,
    ) -> Result<Turn, DeviceError> {
        self.waits_for_socket = false;
        let mergeable = features & F_MRG_RXBUF != 0;
        let mut buffers = GuestIoVec::default();
        for chain in &self.taken {
            add(&mut buffers, ram, chain)?;
        }
        queue.disable_kicks(ram)?;
        for _ in 0..BUDGET {
            self.take(queue, ram, mergeable, &mut buffers)?;
            let enough = self.has_enough(mergeable);
            if !enough {
                // What is there may do for the next frame all the same.
                match next_message_len(socket) {
                    Ok(0) => return Ok(Turn::Closed),
                    Ok(len) if len <= self.room || len > MAX_MESSAGE => {}
                    // With every buffer that the driver can have it would not fit.
                    Ok(_) if self.taken.len() >= usize::from(queue.size()) => {}
                    Ok(_) => {
                        if queue.enable_kicks(ram)? {
                            continue;
                        }
                        count(&metrics.receive_stalls, 1);
                        return Ok(Turn::Waits);
                    }
                    Err(error) => return Ok(self.failed(&error)),
                }
            }
            let message = match buffers.receive_message(socket) {
                Ok(message) if message.len == 0 && !buffers.is_empty() => return Ok(Turn::Closed),
                Ok(message) => message,
                Err(error) => return Ok(self.failed(&error)),
            };
            let given =
                !message.truncated && self.give(message.len, queue, ram, features, &mut buffers)?;
            if given {
                count(&metrics.received_frames, 1);
                count(&metrics.received_bytes, (message.len - HEADER) as u64);
            } else {
                count(&metrics.received_dropped, 1);
            }
        }
        Ok(Turn::More)
    }

    fn failed(&mut self, error: &io::Error) -> Turn {
        if error.kind() == io::ErrorKind::WouldBlock {
            self.waits_for_socket = true;
            Turn::Waits
        } else {
            Turn::Closed
        }
    }

    /// Whether any frame fits into what was taken.
    fn has_enough(&self, mergeable: bool) -> bool {
        if mergeable {
            self.room >= MAX_MESSAGE
        } else {
            !self.taken.is_empty()
        }
    }

    fn take<'m>(
        &mut self,
        queue: &mut Virtqueue,
        ram: &'m GuestRam,
        mergeable: bool,
        buffers: &mut GuestIoVec<'m>,
    ) -> Result<(), DeviceError> {
        for _ in 0..queue.size() {
            if self.has_enough(mergeable) {
                break;
            }
            let Some(chain) = queue.pop(ram)? else { break };
            if (chain.writable_len() as usize) < HEADER {
                return Err(DeviceError::Protocol(
                    "a receive buffer is smaller than the header",
                ));
            }
            add(buffers, ram, &chain)?;
            self.room = self.room.saturating_add(chain.writable_len() as usize);
            self.taken.push_back(chain);
        }
        Ok(())
    }

    /// Hands the chains that a message of `len` bytes fills to the driver. False where the driver cannot take it.
    fn give(
        &mut self,
        len: usize,
        queue: &mut Virtqueue,
        ram: &GuestRam,
        features: u64,
        buffers: &mut GuestIoVec<'_>,
    ) -> Result<bool, DeviceError> {
        if len < HEADER + ETHERNET {
            return Ok(false);
        }
        let mut filled = Vec::with_capacity(4);
        let (mut left, mut room) = (len, 0);
        for chain in &self.taken {
            if left == 0 {
                break;
            }
            let here = left.min(chain.writable_len() as usize);
            filled.push((chain.head(), here as u32));
            room += chain.writable_len() as usize;
            left -= here;
        }
        let Some(first) = self.taken.front() else {
            return Ok(false);
        };
        if !finish_header(first, filled.len() as u16, features, ram)? {
            return Ok(false);
        }
        self.taken.drain(..filled.len());
        self.room -= room;
        buffers.advance(room);
        queue.push_together(ram, filled)?;
        Ok(true)
    }
}

fn add<'m>(
    buffers: &mut GuestIoVec<'m>,
    ram: &'m GuestRam,
    chain: &Chain,
) -> Result<(), QueueError> {
    chain
        .writable()
        .iter()
        .try_for_each(|segment| buffers.add(ram, *segment))
}

/// Makes the header in `chain` one that the driver can take, §5.1.6.4. False where it asks for what was not negotiated.
fn finish_header(
    chain: &Chain,
    buffers: u16,
    features: u64,
    ram: &GuestRam,
) -> Result<bool, ShortBuffer> {
    let mut header = [0; HEADER];
    Cursor::new(chain.writable()).read_exact(ram, &mut header)?;
    let checksum = features & F_GUEST_CSUM != 0;
    let [flags, kind, .., low, high] = &mut header;
    let takes = match *kind {
        SEGMENT_NONE => *flags & FLAG_NEEDS_CHECKSUM == 0 || checksum,
        SEGMENT_TCP4 => checksum && features & F_GUEST_TSO4 != 0,
        SEGMENT_TCP6 => checksum && features & F_GUEST_TSO6 != 0,
        _ => false,
    };
    if !takes {
        return Ok(false);
    }
    *flags &= if checksum {
        FLAG_NEEDS_CHECKSUM | FLAG_CHECKED
    } else {
        0
    };
    [*low, *high] = buffers.to_le_bytes();
    Cursor::new(chain.writable()).write_all(ram, &header)?;
    Ok(true)
}
