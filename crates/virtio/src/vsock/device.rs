//! The device.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::config::{F_STREAM, FIRST_EPHEMERAL, MAX_REPLIES, MIN_GUEST_CID};
use super::connection::{Connection, Key, Phase};
use super::metrics::VsockMetrics;
use super::packet::Header;
use super::ports::{HostPorts, HostRequest};
use super::state::{VERSION, VsockState};
use super::table::Table;
use crate::device::read_config_bytes;
use crate::queue::Cursor;
use crate::{
    ActivateError, Activation, DeviceError, DeviceState, GuestMemory, Interest, Interrupt,
    Progress, QueueState, Readiness, Registrar, Source, StateError, VirtioDevice, Virtqueue,
};

const DEVICE_TYPE: u32 = 19;
pub(super) const RECEIVE: u16 = 0;
pub(super) const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// The token of the descriptor that brings requests; the others are connections' numbers.
const REQUESTS: u32 = u32::MAX;
/// Requests taken per call.
const REQUEST_BUDGET: u32 = 64;

/// Why a socket device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The address is reserved, or does not fit.
    #[error("{0} is no guest's address: those are from 3 to 4294967294")]
    Cid(u64),
}

/// A socket device.
pub struct Vsock {
    guest_cid: u64,
    next_port: u32,
    ports: Box<dyn HostPorts>,
    metrics: Arc<VsockMetrics>,
    /// The guest's connections are of an earlier life: it has to hear of it.
    announce_reset: bool,
    active: Option<Active>,
}

pub(super) struct Active {
    pub(super) guest_cid: u64,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) receive: Virtqueue,
    pub(super) transmit: Virtqueue,
    event: Virtqueue,
    pub(super) events: Registrar,
    pub(super) table: Table,
    pub(super) replies: VecDeque<Header>,
    /// Packets of the guest wait until there is room for replies.
    pub(super) transmit_waits: bool,
    requests: Option<Source<OwnedFd>>,
}

impl Vsock {
    /// A device for the guest with address `guest_cid`, whose host ports are `ports`.
    ///
    /// # Errors
    /// The address is not one that a guest may have.
    pub fn new(guest_cid: u64, ports: Box<dyn HostPorts>) -> Result<Self, VsockError> {
        if !(MIN_GUEST_CID..u64::from(u32::MAX)).contains(&guest_cid) {
            return Err(VsockError::Cid(guest_cid));
        }
        Ok(Self {
            guest_cid,
            next_port: FIRST_EPHEMERAL,
            ports,
            metrics: Arc::default(),
            announce_reset: false,
            active: None,
        })
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<VsockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Takes requests of the host side.
    fn take_requests(&mut self) -> Result<(), DeviceError> {
        self.ports.send_answers();
        for _ in 0..REQUEST_BUDGET {
            let Some(request) = self.ports.next_request() else {
                break;
            };
            self.connect(request);
        }
        if let (Some(active), true) = (&self.active, self.ports.has_requests()) {
            active.events.kick(TRANSMIT);
        }
        let closed = self.ports.is_closed();
        let answers = self.ports.has_answers();
        if let Some(source) = self
            .active
            .as_mut()
            .and_then(|active| active.requests.as_mut())
        {
            source
                .watch(Interest::from_wishes(!closed, answers && !closed))
                .map_err(|source| DeviceError::Io {
                    doing: "watching for requests",
                    source,
                })?;
        }
        Ok(())
    }

    fn connect(&mut self, request: HostRequest) {
        let HostRequest {
            id,
            guest_port,
            stream,
        } = request;
        let slot = self
            .active
            .as_mut()
            .and_then(|active| active.table.reserve());
        let (Some(active), Some(slot)) = (&mut self.active, slot) else {
            return self.ports.answered(id, false);
        };
        let host_port = active.table.free_port(&mut self.next_port, guest_port);
        let key = Key {
            host_port,
            guest_port,
        };
        let stream = active.events.source(stream, slot);
        let buffer = active.table.next_buffer();
        let mut connection = Connection::new(key, Phase::Connecting(id), stream, buffer);
        connection.wishes.request = true;
        active.table.insert(slot, connection);
        active.settle(slot);
    }

    fn stream_event(&mut self, slot: u32, readiness: Readiness) {
        let Some(active) = &mut self.active else {
            return;
        };
        let Some(connection) = active.table.get(slot) else {
            return;
        };
        if let (Phase::Connecting(id), true) = (connection.phase, readiness.hangup) {
            // The caller has given up; the guest may have been asked already.
            connection.hang_up();
            connection.wishes.reset = !connection.wishes.request;
            connection.phase = Phase::Established;
            self.ports.answered(id, false);
            if connection.wishes.reset {
                active.settle(slot);
            } else {
                active.table.remove(slot);
            }
            return;
        }
        active.stream_event(slot, readiness);
    }

    /// Tells the guest that its connections are gone (§5.10.6.7), once it has a buffer for that.
    fn announce(&mut self) -> Result<(), DeviceError> {
        let (Some(active), true) = (&mut self.active, self.announce_reset) else {
            return Ok(());
        };
        let ram = active.memory.memory();
        while active.event.enable_kicks(&ram)? {
            let Some(chain) = active.event.pop(&ram)? else {
                continue;
            };
            let reset = 0u32.to_le_bytes();
            Cursor::new(chain.writable()).write_all(&ram, &reset)?;
            active.event.push(&ram, chain.head(), reset.len() as u32)?;
            self.announce_reset = false;
            return Ok(active.event.notify(&ram, &*active.interrupt)?);
        }
        Ok(())
    }
}

impl Active {
    pub(super) fn has_room_for_replies(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            events,
            ..
        } = activation;
        let found = queues.len();
        let [receive, transmit, event] =
            <[Virtqueue; 3]>::try_from(queues).map_err(|_| ActivateError::Queues {
                expected: QUEUE_SIZES.len(),
                found,
            })?;
        let requests = match self.ports.requests() {
            Some(fd) if !self.ports.is_closed() => {
                let mut source = events.source(fd.try_clone_to_owned()?, REQUESTS);
                source.watch(Interest::from_wishes(true, self.ports.has_answers()))?;
                Some(source)
            }
            _ => None,
        };
        self.active = Some(Active {
            guest_cid: self.guest_cid,
            memory,
            interrupt,
            receive,
            transmit,
            event,
            events,
            table: Table::default(),
            replies: VecDeque::new(),
            transmit_waits: false,
            requests,
        });
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(active) = self.active.take() {
            active
                .table
                .connecting()
                .for_each(|id| self.ports.answered(id, false));
        }
    }

    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        match index {
            RECEIVE => active.pump(&self.metrics)?,
            TRANSMIT => {
                active.take(&mut *self.ports, &self.metrics)?;
                active.pump(&self.metrics)?;
                if self.ports.has_requests() {
                    self.take_requests()?;
                }
            }
            EVENT => self.announce()?,
            _ => {}
        }
        Ok(Progress::Done)
    }

    fn handle_event(&mut self, token: u32, readiness: Readiness) -> Result<(), DeviceError> {
        if token == REQUESTS {
            self.take_requests()?;
        } else {
            self.stream_event(token, readiness);
        }
        if let Some(active) = &mut self.active {
            active.pump(&self.metrics)?;
            if token != REQUESTS {
                active.settle(token);
            }
        }
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let queues = self.active.iter();
        queues
            .flat_map(|active| [&active.receive, &active.transmit, &active.event])
            .map(Virtqueue::state)
            .collect()
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let state = VsockState {
            guest_cid: self.guest_cid,
            next_port: self.next_port,
            had_driver: self.active.is_some() || self.announce_reset,
        };
        DeviceState::encode(DEVICE_TYPE, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state: VsockState = state.decode(DEVICE_TYPE, VERSION)?;
        // A clone has an address of its own: its guest reads it again when it hears of the reset.
        self.next_port = state.next_port;
        self.announce_reset = state.had_driver;
        Ok(())
    }
}
