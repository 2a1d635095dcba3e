//! From the transmit queue into the socket, many chains with one system call.

use std::io;
use std::os::fd::OwnedFd;

use super::metrics::{ConsoleMetrics, count};
use crate::guest_io::GuestIoVec;
use crate::queue::{Cursor, ShortBuffer};
use crate::{Chain, GuestRam, QueueError, Virtqueue};

/// Chains sent with one system call, and system calls per turn.
const CHAINS: usize = 64;
const CALLS: u32 = 4;
/// Bytes copied out of guest memory at once for who watches the output.
const WATCHED: usize = 512;

/// Who is shown what the guest prints.
pub(super) type OutputWatch = Box<dyn FnMut(&[u8]) + Send>;

/// Where output stands.
#[derive(Default)]
pub(super) struct Output {
    waits_for_socket: bool,
    ended: bool,
    sent_of_first: u32,
}

impl Output {
    /// Output that goes on inside the first chain.
    pub(super) fn resumed(sent_of_first: u32) -> Self {
        Self {
            sent_of_first,
            ..Self::default()
        }
    }

    /// Whether the socket is full and to be watched for writing. The chains stay in the queue meanwhile.
    pub(super) fn waits_for_socket(&self) -> bool {
        self.waits_for_socket
    }

    pub(super) fn socket_is_ready(&mut self) {
        self.waits_for_socket = false;
    }

    pub(super) fn sent_of_first(&self) -> u32 {
        self.sent_of_first
    }

    pub(super) fn run(
        &mut self,
        queue: &mut Virtqueue,
        ram: &GuestRam,
        socket: &OwnedFd,
        metrics: &ConsoleMetrics,
        watch: Option<&mut OutputWatch>,
    ) -> Result<(), QueueError> {
        let mut watch = watch;
        queue.disable_kicks(ram)?;
        for _ in 0..CALLS {
            let mut chains = Vec::new();
            while chains.len() < CHAINS {
                let Some(chain) = queue.pop(ram)? else { break };
                chains.push(chain);
            }
            if chains.is_empty() {
                if queue.enable_kicks(ram)? {
                    continue;
                }
                return Ok(());
            }
            let (taken, full) = self.send(&chains, ram, socket, metrics)?;
            if let Some(watch) = watch.as_deref_mut() {
                self.show(&chains, taken, ram, watch)?;
            }
            self.complete(&chains, taken, queue, ram)?;
            if full {
                self.waits_for_socket = true;
                count(&metrics.output_stalls, 1);
                return Ok(());
            }
        }
        // Others get their turn; a socket that still takes something brings this one back at once.
        self.waits_for_socket = true;
        Ok(())
    }

    /// Returns how many bytes are dealt with, and whether the socket is full.
    fn send(
        &mut self,
        chains: &[Chain],
        ram: &GuestRam,
        socket: &OwnedFd,
        metrics: &ConsoleMetrics,
    ) -> Result<(u64, bool), QueueError> {
        let mut buffers = GuestIoVec::default();
        for (at, chain) in chains.iter().enumerate() {
            let mut cursor = Cursor::new(chain.readable());
            if at == 0 {
                cursor.skip(u64::from(self.sent_of_first));
            }
            for segment in cursor.segments(u64::MAX) {
                buffers.add(ram, segment)?;
            }
        }
        let all = buffers.len() as u64;
        if all == 0 {
            return Ok((0, false));
        }
        if !self.ended {
            match buffers.send(socket) {
                Ok(sent) => {
                    count(&metrics.output, sent as u64);
                    return Ok((sent as u64, false));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok((0, true)),
                // Nobody will ever read it: the guest must not wait.
                Err(_) => self.ended = true,
            }
        }
        count(&metrics.discarded, all);
        Ok((all, false))
    }

    /// Shows the next `taken` bytes.
    fn show(
        &self,
        chains: &[Chain],
        taken: u64,
        ram: &GuestRam,
        watch: &mut OutputWatch,
    ) -> Result<(), QueueError> {
        let mut buffer = [0; WATCHED];
        let mut skip = u64::from(self.sent_of_first);
        let mut left = taken;
        for chain in chains {
            let mut cursor = Cursor::new(chain.readable());
            cursor.skip(std::mem::take(&mut skip));
            while left > 0 && cursor.remaining() > 0 {
                let part = cursor.remaining().min(left).min(WATCHED as u64);
                let (part, _) = buffer.split_at_mut(part as usize);
                match cursor.read_exact(ram, part) {
                    Ok(()) => watch(part),
                    Err(ShortBuffer::Queue(error)) => return Err(error),
                    // Cannot be: no more was asked for than remains.
                    Err(ShortBuffer::Short(_)) => break,
                }
                left -= part.len() as u64;
            }
        }
        Ok(())
    }

    /// Hands back the chains that `taken` bytes cover, gives the others back to the queue.
    fn complete(
        &mut self,
        chains: &[Chain],
        taken: u64,
        queue: &mut Virtqueue,
        ram: &GuestRam,
    ) -> Result<(), QueueError> {
        let mut taken = taken + u64::from(self.sent_of_first);
        self.sent_of_first = 0;
        let mut chains = chains.iter();
        for chain in chains.by_ref() {
            let len = u64::from(chain.readable_len());
            if taken < len {
                self.sent_of_first = taken as u32;
                queue.undo_pop();
                break;
            }
            taken -= len;
            queue.push(ram, chain.head(), 0)?;
        }
        chains.for_each(|_| queue.undo_pop());
        Ok(())
    }

    /// Puts out one character past the queue. Lost if the socket is full: the guest cannot wait here.
    pub(super) fn emergency(&mut self, character: u8, socket: &OwnedFd, metrics: &ConsoleMetrics) {
        use rustix::net::{SendFlags, send};
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = send(socket, &[character], flags).is_ok();
        count(
            if sent {
                &metrics.output
            } else {
                &metrics.discarded
            },
            1,
        );
    }
}
