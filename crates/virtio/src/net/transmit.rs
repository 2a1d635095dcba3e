//! From the transmit queue into the socket, many frames with one system call.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::config::{ETHERNET, HEADER, MAX_MESSAGE};
use super::metrics::{NetMetrics, count};
use super::receive::Turn;
use crate::guest_io::{GuestIoVec, MAX_IO_VECTORS, send_messages};
use crate::{Chain, GuestRam, QueueError, Virtqueue};

/// Frames sent with one system call, and system calls per turn.
const FRAMES: usize = 64;
const CALLS: u32 = 4;

/// Where the sending half stands.
#[derive(Default)]
pub(super) struct Transmit {
    waits_for_socket: bool,
}

/// Frames that go out together.
#[derive(Default)]
struct Batch<'m> {
    chains: Vec<Chain>,
    messages: Vec<GuestIoVec<'m>>,
}

impl Transmit {
    /// Whether the socket is full and to be watched for writing. The chains stay in the queue meanwhile.
    pub(super) fn waits_for_socket(&self) -> bool {
        self.waits_for_socket
    }

    pub(super) fn socket_is_ready(&mut self) {
        self.waits_for_socket = false;
    }

    /// Sends what is in the queue; without a `socket` it is dropped, so that the guest need not wait.
    pub(super) fn run(
        &mut self,
        queue: &mut Virtqueue,
        ram: &GuestRam,
        socket: Option<&OwnedFd>,
        metrics: &NetMetrics,
    ) -> Result<Turn, QueueError> {
        queue.disable_kicks(ram)?;
        for _ in 0..CALLS {
            let batch = gather(queue, ram, metrics)?;
            if batch.chains.is_empty() {
                if queue.enable_kicks(ram)? {
                    continue;
                }
                return Ok(Turn::Waits);
            }
            let Some(socket) = socket else {
                drop_first(queue, ram, &batch, batch.chains.len(), metrics)?;
                continue;
            };
            match send_messages(&batch.messages, socket) {
                Ok(sent) => {
                    let bytes = batch.messages.iter().take(sent);
                    let bytes: usize = bytes.map(|message| message.len() - HEADER).sum();
                    count(&metrics.sent_frames, sent as u64);
                    count(&metrics.sent_bytes, bytes as u64);
                    complete(queue, ram, &batch, sent)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    complete(queue, ram, &batch, 0)?;
                    self.waits_for_socket = true;
                    count(&metrics.send_stalls, 1);
                    return Ok(Turn::Waits);
                }
                // Too long for this socket, or the host is short of memory: no event would tell when to try again.
                Err(error) if is_passing(&error) => {
                    drop_first(queue, ram, &batch, 1, metrics)?;
                }
                Err(_) => {
                    complete(queue, ram, &batch, 0)?;
                    return Ok(Turn::Closed);
                }
            }
        }
        Ok(Turn::More)
    }
}

fn is_passing(error: &io::Error) -> bool {
    [Errno::MSGSIZE, Errno::NOBUFS, Errno::NOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Takes frames until there is none, or one that cannot go out, which is dropped when it is the first.
fn gather<'m>(
    queue: &mut Virtqueue,
    ram: &'m GuestRam,
    metrics: &NetMetrics,
) -> Result<Batch<'m>, QueueError> {
    let mut batch = Batch::default();
    for _ in 0..queue.size() {
        if batch.chains.len() >= FRAMES {
            break;
        }
        let Some(chain) = queue.pop(ram)? else { break };
        let len = chain.readable_len() as usize;
        if (HEADER + ETHERNET..=MAX_MESSAGE).contains(&len) {
            let message = GuestIoVec::new(ram, chain.readable().iter().copied())?;
            if message.count() <= MAX_IO_VECTORS {
                batch.messages.push(message);
                batch.chains.push(chain);
                continue;
            }
        }
        if !batch.chains.is_empty() {
            queue.undo_pop();
            break;
        }
        count(&metrics.sent_dropped, 1);
        queue.push(ram, chain.head(), 0)?;
    }
    Ok(batch)
}

/// Hands the first `done` chains back to the driver and gives the others back to the queue.
fn complete(
    queue: &mut Virtqueue,
    ram: &GuestRam,
    batch: &Batch<'_>,
    done: usize,
) -> Result<(), QueueError> {
    batch
        .chains
        .iter()
        .skip(done)
        .for_each(|_| queue.undo_pop());
    let done = batch.chains.iter().take(done);
    queue.push_together(ram, done.map(|chain| (chain.head(), 0)))
}

fn drop_first(
    queue: &mut Virtqueue,
    ram: &GuestRam,
    batch: &Batch<'_>,
    done: usize,
    metrics: &NetMetrics,
) -> Result<(), QueueError> {
    count(&metrics.sent_dropped, done as u64);
    complete(queue, ram, batch, done)
}
