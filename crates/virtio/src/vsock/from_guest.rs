//! The transmit queue: what each packet of the guest does.

use super::HOST_CID;
use super::connection::{Connection, Key, Phase};
use super::device::{Active, TRANSMIT};
use super::metrics::{VsockMetrics, count};
use super::packet::{HEADER, Header, Op, TYPE_STREAM};
use super::ports::HostPorts;
use crate::guest_io::GuestIoVec;
use crate::queue::Cursor;
use crate::{DeviceError, GuestRam};

/// Packets taken per call.
const BUDGET: u32 = 128;

impl Active {
    /// Takes packets from the guest.
    pub(super) fn take(
        &mut self,
        ports: &mut dyn HostPorts,
        metrics: &VsockMetrics,
    ) -> Result<(), DeviceError> {
        let memory = self.memory.clone();
        let ram = vm_memory::GuestAddressSpace::memory(&memory);
        self.transmit.disable_kicks(&ram)?;
        for turn in 0.. {
            if !self.has_room_for_replies() {
                // §5.10.6.1: what cannot be answered is not read. It goes on when the guest gives buffers.
                self.transmit_waits = true;
                break;
            }
            if turn == BUDGET {
                self.events.kick(TRANSMIT);
                break;
            }
            let Some(chain) = self.transmit.pop(&ram)? else {
                if self.transmit.enable_kicks(&ram)? {
                    continue;
                }
                break;
            };
            let mut cursor = Cursor::new(chain.readable());
            let mut bytes = [0; HEADER];
            cursor.read_exact(&ram, &mut bytes)?;
            let header = Header::from_bytes(&bytes);
            if u64::from(header.len) > cursor.remaining() {
                return Err(DeviceError::Protocol("a packet is longer than its buffers"));
            }
            self.packet(&header, &cursor, &ram, ports, metrics)?;
            self.transmit.push(&ram, chain.head(), 0)?;
        }
        self.transmit.notify(&ram, &*self.interrupt)?;
        Ok(())
    }

    fn packet(
        &mut self,
        header: &Header,
        data: &Cursor<'_>,
        ram: &GuestRam,
        ports: &mut dyn HostPorts,
        metrics: &VsockMetrics,
    ) -> Result<(), DeviceError> {
        if header.src_cid != self.guest_cid {
            return Ok(()); // Nobody could be answered.
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(header);
            return Ok(());
        }
        let key = Key {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let Some(slot) = self.table.find(key) else {
            if header.op == Some(Op::Request) {
                self.open(key, header, ports, metrics);
            } else {
                self.refuse(header);
            }
            return Ok(());
        };
        let Some(connection) = self.table.get(slot) else {
            return Ok(());
        };
        connection.take_credit(header);
        let phase = connection.phase;
        match (header.op, phase) {
            (Some(Op::Response), Phase::Connecting(id)) => {
                connection.phase = Phase::Established;
                connection.wishes.read = true;
                count(&metrics.opened, 1);
                ports.answered(id, true);
            }
            (Some(Op::Reset), Phase::Connecting(id)) => {
                ports.answered(id, false);
                self.table.remove(slot);
            }
            (Some(Op::Reset), Phase::Established) => self.end(slot),
            (Some(Op::Shutdown), Phase::Established) => {
                if connection.shut_down(header.flags) {
                    self.end(slot);
                    self.refuse(header);
                }
            }
            (Some(Op::ReadWrite), Phase::Established) => {
                let data = GuestIoVec::new(ram, data.segments(u64::from(header.len)))?;
                if connection.write(&data) {
                    count(&metrics.from_guest, data.len() as u64);
                } else {
                    count(&metrics.violations, 1);
                    self.abort(slot, header, ports);
                }
            }
            (Some(Op::CreditUpdate), _) => {}
            (Some(Op::CreditRequest), _) => connection.wishes.credit_update = true,
            // A second request, a response to nothing, data before the response, an unknown operation.
            _ => self.abort(slot, header, ports),
        }
        self.settle(slot);
        Ok(())
    }

    /// The guest asks for a connection.
    fn open(
        &mut self,
        key: Key,
        header: &Header,
        ports: &mut dyn HostPorts,
        metrics: &VsockMetrics,
    ) {
        let slot = self.table.reserve();
        let stream = slot.and_then(|_| ports.accept(key.host_port, key.guest_port));
        let (Some(slot), Some(stream)) = (slot, stream) else {
            count(&metrics.refused, 1);
            return self.refuse(header);
        };
        let stream = self.events.source(stream, slot);
        let buffer = self.table.next_buffer();
        let mut connection = Connection::new(key, Phase::Established, stream, buffer);
        connection.take_credit(header);
        connection.wishes.response = true;
        self.table.insert(slot, connection);
        count(&metrics.opened, 1);
        self.settle(slot);
    }

    /// Ends a connection that the guest has ended. What it sent before still reaches the host side.
    fn end(&mut self, slot: u32) {
        match self.table.get(slot) {
            Some(connection) if connection.must_linger() => {
                connection.detach();
                self.table.forget_key(slot);
            }
            _ => {
                self.table.remove(slot);
            }
        }
    }

    /// Ends a connection whose guest breaks the rules.
    fn abort(&mut self, slot: u32, header: &Header, ports: &mut dyn HostPorts) {
        if let Some(Connection {
            phase: Phase::Connecting(id),
            ..
        }) = self.table.remove(slot)
        {
            ports.answered(id, false);
        }
        self.refuse(header);
    }

    /// Answers a packet with a reset, unless it is one.
    fn refuse(&mut self, header: &Header) {
        if header.op == Some(Op::Reset) {
            return;
        }
        self.replies.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            len: 0,
            kind: header.kind,
            op: Some(Op::Reset),
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        });
    }
}
