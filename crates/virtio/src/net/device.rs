//! The device: its queue pair, its socket, and who is waiting for whom.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use vm_memory::GuestAddressSpace;

use super::config::{F_STATUS, FEATURES, NetConfig, NetConfigError};
use super::metrics::NetMetrics;
use super::offer::{Offer, offer};
use super::receive::{Receive, Turn};
use super::state::{NetState, VERSION};
use super::transmit::Transmit;
use crate::guest_io::next_message_len;
use crate::{
    ActivateError, Activation, DeviceError, DeviceState, GuestMemory, Interest, Interrupt,
    Progress, QueueState, Readiness, Registrar, Source, StateError, VirtioDevice, Virtqueue,
};

const DEVICE_TYPE: u32 = 1;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
const SOCKET: u32 = 0;

/// A network interface.
pub struct Net {
    config: NetConfig,
    socket: Arc<OwnedFd>,
    shared: Arc<Shared>,
    receive: Receive,
    transmit: Transmit,
    active: Option<Active>,
}

struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    features: u64,
    receive: Virtqueue,
    transmit: Virtqueue,
    source: Source<Arc<OwnedFd>>,
    events: Registrar,
    /// Still to be sent, before any frame.
    offer: Option<Offer>,
}

#[derive(Default)]
struct Shared {
    metrics: NetMetrics,
    down: AtomicBool,
}

/// The host's view of a [`Net`], usable from any thread.
#[derive(Clone)]
pub struct NetHandle(Arc<Shared>);

impl NetHandle {
    /// The device's counters.
    pub fn metrics(&self) -> &NetMetrics {
        &self.0.metrics
    }

    /// Whether the other side of the socket was there when it was needed last.
    pub fn link_is_up(&self) -> bool {
        !self.0.down.load(Ordering::Acquire)
    }
}

impl Net {
    /// An interface whose frames are messages on `socket`, a connected socket that keeps message boundaries.
    ///
    /// # Errors
    /// The configuration is none.
    pub fn new(config: NetConfig, socket: OwnedFd) -> Result<(Self, NetHandle), NetConfigError> {
        config.check()?;
        let shared = Arc::<Shared>::default();
        let net = Self {
            config,
            socket: Arc::new(socket),
            shared: Arc::clone(&shared),
            receive: Receive::default(),
            transmit: Transmit::default(),
            active: None,
        };
        Ok((net, NetHandle(shared)))
    }

    fn is_up(&self) -> bool {
        !self.shared.down.load(Ordering::Acquire)
    }

    fn receive(&mut self) -> Result<Progress, DeviceError> {
        let up = self.is_up();
        let Some(active) = self.active.as_mut().filter(|_| up) else {
            return Ok(Progress::Done);
        };
        let ram = active.memory.memory();
        let metrics = &self.shared.metrics;
        let turn = self.receive.run(
            &mut active.receive,
            &ram,
            &self.socket,
            active.features,
            metrics,
        )?;
        active.receive.notify(&ram, &*active.interrupt)?;
        self.after(turn)
    }

    fn transmit(&mut self) -> Result<Progress, DeviceError> {
        if self.is_up() && !self.send_offer()? {
            return Ok(Progress::Done);
        }
        let up = self.is_up();
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let ram = active.memory.memory();
        let metrics = &self.shared.metrics;
        let socket = up.then_some(&*self.socket);
        let turn = self
            .transmit
            .run(&mut active.transmit, &ram, socket, metrics)?;
        active.transmit.notify(&ram, &*active.interrupt)?;
        self.after(turn)
    }

    /// Tells the other side what the driver takes, if that is still to be done. Returns whether frames may go out.
    fn send_offer(&mut self) -> Result<bool, DeviceError> {
        let Some((active, offer)) = self
            .active
            .as_mut()
            .and_then(|active| active.offer.map(|offer| (active, offer)))
        else {
            return Ok(true);
        };
        match send(
            &self.socket,
            &offer,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(_) => {
                active.offer = None;
                self.watch()?;
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => {
                self.watch()?;
                Ok(false)
            }
            Err(_) => {
                self.close()?;
                Ok(true)
            }
        }
    }

    fn after(&mut self, turn: Turn) -> Result<Progress, DeviceError> {
        match turn {
            Turn::Waits => {
                self.watch()?;
                Ok(Progress::Done)
            }
            Turn::More => {
                self.watch()?;
                Ok(Progress::More)
            }
            Turn::Closed => {
                self.close()?;
                Ok(Progress::Done)
            }
        }
    }

    /// The other side is gone: the link is down, and what the guest sends is dropped.
    fn close(&mut self) -> Result<(), DeviceError> {
        self.shared.down.store(true, Ordering::Release);
        self.transmit.socket_is_ready();
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        active.offer = None;
        self.receive.withdraw(&mut active.receive);
        active.source.watch(None).map_err(watching)?;
        if active.features & F_STATUS != 0 {
            active.interrupt.signal_config();
        }
        active.events.kick(TRANSMIT);
        Ok(())
    }

    /// The other side has closed the socket. Frames that it sent before are the guest's, once it has buffers: its kick
    /// then leads to the end, which must not be told all the time until then.
    fn ending(&mut self) -> Result<(), DeviceError> {
        if !matches!(next_message_len(&*self.socket), Ok(1..)) {
            return self.close();
        }
        match &mut self.active {
            Some(active) => active.source.watch(None).map_err(watching),
            None => Ok(()),
        }
    }

    fn watch(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let interest = Interest::from_wishes(
            self.receive.waits_for_socket(),
            self.transmit.waits_for_socket() || active.offer.is_some(),
        );
        // While nothing is waited for, the end of the other side is still worth knowing, once.
        let interest = interest
            .or(Some(Interest::Hangup))
            .filter(|_| !self.shared.down.load(Ordering::Acquire));
        active.source.watch(interest).map_err(watching)
    }
}

fn watching(source: io::Error) -> DeviceError {
    DeviceError::Io {
        doing: "watching the network's socket",
        source,
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_config_bytes(&self.config.bytes(self.is_up()), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            features,
            events,
        } = activation;
        let found = queues.len();
        let [receive, transmit] =
            <[Virtqueue; 2]>::try_from(queues).map_err(|_| ActivateError::Queues {
                expected: QUEUE_SIZES.len(),
                found,
            })?;
        let source = events.source(Arc::clone(&self.socket), SOCKET);
        // It goes out with the first kick, which comes at once.
        self.active = Some(Active {
            memory,
            interrupt,
            features,
            receive,
            transmit,
            source,
            events,
            offer: Some(offer(features)),
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.receive = Receive::default();
        self.transmit = Transmit::default();
    }

    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError> {
        match index {
            RECEIVE if !self.receive.waits_for_socket() => self.receive(),
            TRANSMIT if !self.transmit.waits_for_socket() => self.transmit(),
            _ => Ok(Progress::Done),
        }
    }

    fn handle_event(&mut self, token: u32, readiness: Readiness) -> Result<(), DeviceError> {
        let Some(events) = self.active.as_ref().map(|active| active.events.clone()) else {
            return Ok(());
        };
        if token != SOCKET || !self.is_up() {
            return Ok(());
        }
        let offering = self
            .active
            .as_ref()
            .is_some_and(|active| active.offer.is_some());
        if readiness.writable && (self.transmit.waits_for_socket() || offering) {
            self.transmit.socket_is_ready();
            if self.transmit()? == Progress::More {
                events.kick(TRANSMIT);
            }
        }
        if readiness.readable
            && self.receive.waits_for_socket()
            && self.receive()? == Progress::More
        {
            events.kick(RECEIVE);
        }
        if readiness.hangup && self.is_up() {
            self.ending()?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), DeviceError> {
        if let Some(active) = &mut self.active {
            self.receive.withdraw(&mut active.receive);
            self.transmit.socket_is_ready();
            active.source.watch(None).map_err(watching)?;
        }
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let queues = self
            .active
            .iter()
            .flat_map(|active| [&active.receive, &active.transmit]);
        queues.map(Virtqueue::state).collect()
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let NetConfig { mac, mtu } = self.config;
        DeviceState::encode(DEVICE_TYPE, VERSION, &NetState { mac, mtu })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let NetState { mac, mtu } = state.decode(DEVICE_TYPE, VERSION)?;
        let config = NetConfig { mac, mtu };
        config
            .check()
            .map_err(|_| StateError::Mismatch("no interface has this address or MTU"))?;
        self.config = config;
        Ok(())
    }
}
