//! The receive queue: replies first, then each connection in turn.

use std::sync::atomic::Ordering;

use super::connection::Read;
use super::device::Active;
use super::metrics::VsockMetrics;
use super::packet::{HEADER, Header, Op};
use crate::guest_io::GuestIoVec;
use crate::queue::Cursor;
use crate::{Chain, DeviceError, GuestRam, Readiness};

/// Turns of connections per call.
const BUDGET: u32 = 128;
/// Buffers of the guest filled with one read.
const BATCH: usize = 32;

impl Active {
    /// Sends what there is to send, as far as the guest has buffers.
    pub(super) fn pump(&mut self, metrics: &VsockMetrics) -> Result<(), DeviceError> {
        let memory = self.memory.clone();
        let ram = vm_memory::GuestAddressSpace::memory(&memory);
        self.receive.disable_kicks(&ram)?;
        let mut turns = 0;
        while !(self.replies.is_empty() && self.table.listed.is_empty()) {
            if !self.receive.has_available(&ram)? && !self.receive.enable_kicks(&ram)? {
                break;
            }
            if turns == BUDGET {
                self.events.kick(super::device::RECEIVE);
                break;
            }
            turns += 1;
            if let Some(header) = self.replies.pop_front() {
                self.put(&header, &ram)?;
            } else if let Some(slot) = self.table.next_listed() {
                self.serve(slot, metrics, &ram)?;
            }
        }
        self.receive.notify(&ram, &*self.interrupt)?;
        if self.transmit_waits && self.has_room_for_replies() {
            self.transmit_waits = false;
            self.events.kick(super::device::TRANSMIT);
        }
        Ok(())
    }

    /// Gives a connection its turn: one packet, or one batch of data.
    fn serve(
        &mut self,
        slot: u32,
        metrics: &VsockMetrics,
        ram: &GuestRam,
    ) -> Result<(), DeviceError> {
        let Some(connection) = self.table.get(slot) else {
            return Ok(());
        };
        if let Some(header) = connection.next_control(self.guest_cid) {
            self.put(&header, ram)?;
            if header.op == Some(Op::Reset) {
                self.table.remove(slot);
                return Ok(());
            }
        } else if !connection.wishes.read || !connection.is_readable() {
            connection.wishes.read = false;
        } else if connection.credit() == 0 {
            connection.starve();
        } else {
            self.carry(slot, metrics, ram)?;
        }
        self.settle(slot);
        Ok(())
    }

    /// Reads from a connection's stream into as many buffers as are there.
    fn carry(
        &mut self,
        slot: u32,
        metrics: &VsockMetrics,
        ram: &GuestRam,
    ) -> Result<(), DeviceError> {
        let Some(connection) = self.table.get(slot) else {
            return Ok(());
        };
        let mut credit = connection.credit();
        let mut chains: Vec<Chain> = Vec::with_capacity(BATCH);
        let mut buffers = GuestIoVec::default();
        while chains.len() < BATCH && credit > 0 {
            let Some(chain) = self.receive.pop(ram)? else {
                break;
            };
            let mut cursor = Cursor::new(chain.writable());
            cursor.skip(HEADER as u64);
            let room = cursor.remaining().min(u64::from(credit)) as u32;
            if room == 0 {
                return Err(DeviceError::Protocol(
                    "a receive buffer has no room for data",
                ));
            }
            for segment in cursor.segments(u64::from(room)) {
                buffers.add(ram, segment)?;
            }
            credit -= room;
            chains.push(chain);
        }
        let mut left = match connection.read(&buffers) {
            Read::Data(count) => {
                // Less than there was room for: it is empty, and its watch tells when it is no more.
                connection.wishes.read = count == buffers.len();
                count as u32
            }
            Read::Empty | Read::Ended => {
                connection.wishes.read = false;
                0
            }
        };
        metrics
            .to_guest
            .fetch_add(u64::from(left), Ordering::Relaxed);
        for chain in &chains {
            if left == 0 {
                self.receive.undo_pop();
                continue;
            }
            let len = left.min(chain.writable_len() - HEADER as u32);
            left -= len;
            let header = connection.header(self.guest_cid, Op::ReadWrite, len);
            Cursor::new(chain.writable()).write_all(ram, &header.to_bytes())?;
            self.receive.push(ram, chain.head(), HEADER as u32 + len)?;
        }
        Ok(())
    }

    /// Puts a packet without data into the next buffer, of which there is one.
    fn put(&mut self, header: &Header, ram: &GuestRam) -> Result<(), DeviceError> {
        let Some(chain) = self.receive.pop(ram)? else {
            return Ok(());
        };
        Cursor::new(chain.writable()).write_all(ram, &header.to_bytes())?;
        self.receive.push(ram, chain.head(), HEADER as u32)?;
        Ok(())
    }

    /// After a connection was worked on: lists its wishes, watches its stream, ends it if it is finished.
    pub(super) fn settle(&mut self, slot: u32) {
        let Some(connection) = self.table.get(slot) else {
            return;
        };
        if connection.is_finished() {
            self.table.remove(slot);
            return;
        }
        if let Err(error) = connection.watch() {
            tracing::warn!(%error, "a stream cannot be watched; its connection ends");
            connection.wishes.reset = true;
        }
        self.table.list(slot);
    }

    /// The host side of a connection has something to say. [`settle`](Self::settle) it after a [`pump`](Self::pump).
    pub(super) fn stream_event(&mut self, slot: u32, readiness: Readiness) {
        let Some(connection) = self.table.get(slot) else {
            return;
        };
        if readiness.writable {
            connection.flush();
        }
        if readiness.hangup || readiness.error {
            connection.hang_up();
        } else if readiness.readable && connection.is_readable() {
            connection.wishes.read = true;
        }
        // What is watched is settled when this was dealt with: most often it is the same as before.
        if connection.is_finished() {
            self.table.remove(slot);
        } else {
            self.table.list(slot);
        }
    }
}
