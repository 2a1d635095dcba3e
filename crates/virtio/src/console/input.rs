//! From the socket into the receive queue.

use std::io;
use std::os::fd::OwnedFd;

use super::metrics::{ConsoleMetrics, count};
use crate::guest_io::GuestIoVec;
use crate::{GuestRam, QueueError, Virtqueue};

/// Chains filled per call.
const BUDGET: u32 = 64;

/// Where input stands: it flows while both sides are ready, and is watched for on the side that is not.
#[derive(Default)]
pub(super) struct Input {
    waits_for_socket: bool,
    ended: bool,
}

impl Input {
    /// Whether the socket is to be watched for reading. Not so while the guest has no buffers: its kick comes then.
    pub(super) fn waits_for_socket(&self) -> bool {
        self.waits_for_socket
    }

    pub(super) fn run(
        &mut self,
        queue: &mut Virtqueue,
        ram: &GuestRam,
        socket: &OwnedFd,
        metrics: &ConsoleMetrics,
    ) -> Result<(), QueueError> {
        self.waits_for_socket = false;
        if self.ended {
            return Ok(());
        }
        queue.disable_kicks(ram)?;
        for _ in 0..BUDGET {
            let Some(chain) = queue.pop(ram)? else {
                if queue.enable_kicks(ram)? {
                    continue;
                }
                count(&metrics.input_stalls, 1);
                return Ok(());
            };
            let buffers = GuestIoVec::new(ram, chain.writable().iter().copied())?;
            if buffers.is_empty() {
                queue.push(ram, chain.head(), 0)?;
                continue;
            }
            match buffers.receive(socket) {
                Ok(0) => self.ended = true,
                Ok(received) => {
                    count(&metrics.input, received as u64);
                    // At most the chain's length, which fits.
                    queue.push(ram, chain.head(), received as u32)?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.waits_for_socket = true;
                }
                Err(_) => self.ended = true,
            }
            queue.undo_pop();
            return Ok(());
        }
        // Others get their turn; what is still in the socket brings this one back at once.
        self.waits_for_socket = true;
        Ok(())
    }
}
