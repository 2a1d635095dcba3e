//! The device: its queues, its socket, and who is waiting for whom.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::GuestAddressSpace;

use super::config::{EMERG_WRITE_OFFSET, F_EMERG_WRITE, F_SIZE, WindowSize};
use super::input::Input;
use super::metrics::ConsoleMetrics;
use super::output::{Output, OutputWatch};
use super::state::{ConsoleState, VERSION};
use crate::{
    ActivateError, Activation, DeviceError, DeviceState, GuestMemory, Interest, Interrupt,
    Progress, QueueState, Readiness, Registrar, Source, StateError, VirtioDevice, Virtqueue,
};

const DEVICE_TYPE: u32 = 3;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
const SOCKET: u32 = 0;

/// A console with one port (`hvc0` in Linux).
pub struct Console {
    socket: Arc<OwnedFd>,
    shared: Arc<Shared>,
    input: Input,
    output: Output,
    watch: Option<OutputWatch>,
    active: Option<Active>,
}

struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    receive: Virtqueue,
    transmit: Virtqueue,
    source: Source<Arc<OwnedFd>>,
}

#[derive(Default)]
struct Shared {
    size: WindowSize,
    metrics: ConsoleMetrics,
    /// There while the driver is to hear of changes of the size.
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    /// There while input is held back, to let it go by.
    held: Mutex<Option<Registrar>>,
}

impl Shared {
    /// Holds input back until the driver reads the configuration, which it is about to be asked for.
    ///
    /// Linux announces its buffers before it has put the port on its list, and throws away what
    /// arrives between the two. It reads the configuration after a change of it, and handles changes
    /// only once its probe is through: what it reads then tells that it is ready.
    fn hold_input(&self, events: &Registrar) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(events.clone());
    }

    fn input_is_held(&self) -> bool {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    fn release_input(&self) -> Option<Registrar> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

/// The host's control over a [`Console`], usable from any thread.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Shared>);

impl ConsoleHandle {
    /// Tells the guest the size of the terminal, in characters. It gets `SIGWINCH` on its console.
    pub fn set_size(&self, columns: u16, rows: u16) {
        self.0.size.set(columns, rows);
        let interrupt = self
            .0
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(interrupt) = interrupt {
            interrupt.signal_config();
        }
    }

    /// The console's counters.
    pub fn metrics(&self) -> &ConsoleMetrics {
        &self.0.metrics
    }
}

impl Console {
    /// A console whose guest talks to the other end of `socket`, a connected stream socket.
    ///
    /// When that end stops sending, the guest just gets no more input. When it is gone, output is discarded.
    pub fn new(socket: OwnedFd) -> (Self, ConsoleHandle) {
        let shared = Arc::<Shared>::default();
        let console = Self {
            socket: Arc::new(socket),
            shared: Arc::clone(&shared),
            input: Input::default(),
            output: Output::default(),
            watch: None,
            active: None,
        };
        (console, ConsoleHandle(shared))
    }

    /// Shows `watch` every byte that the guest prints, in order, as it goes out or is discarded. The cuts between calls
    /// mean nothing. `watch` runs on the device's loop and must not block.
    #[must_use]
    pub fn watched(mut self, watch: impl FnMut(&[u8]) + Send + 'static) -> Self {
        self.watch = Some(Box::new(watch));
        self
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if self.shared.input_is_held() {
            return Ok(());
        }
        let ram = active.memory.memory();
        let metrics = &self.shared.metrics;
        self.input
            .run(&mut active.receive, &ram, &self.socket, metrics)?;
        active.receive.notify(&ram, &*active.interrupt)?;
        self.watch()
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let ram = active.memory.memory();
        let metrics = &self.shared.metrics;
        self.output.run(
            &mut active.transmit,
            &ram,
            &self.socket,
            metrics,
            self.watch.as_mut(),
        )?;
        active.transmit.notify(&ram, &*active.interrupt)?;
        self.watch()
    }

    fn watch(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let interest = Interest::from_wishes(
            self.input.waits_for_socket(),
            self.output.waits_for_socket(),
        );
        active
            .source
            .watch(interest)
            .map_err(|source| DeviceError::Io {
                doing: "watching the console's socket",
                source,
            })
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_SIZE | F_EMERG_WRITE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_config_bytes(&self.shared.size.bytes(), offset, data);
        if let Some(events) = self.shared.release_input() {
            events.kick(RECEIVE);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // §5.3.6.1: the low byte is a character to put out, also before the driver has set up anything.
        if let (EMERG_WRITE_OFFSET, Some(&character)) = (offset, data.first()) {
            if let Some(watch) = &mut self.watch {
                watch(&[character]);
            }
            self.output
                .emergency(character, &self.socket, &self.shared.metrics);
        }
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
        if features & F_SIZE != 0 {
            self.shared.set_interrupt(Some(Arc::clone(&interrupt)));
            self.shared.hold_input(&events);
            interrupt.signal_config();
        }
        self.active = Some(Active {
            memory,
            interrupt,
            receive,
            transmit,
            source,
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.set_interrupt(None);
        self.shared.release_input();
        self.active = None;
        self.input = Input::default();
        self.output = Output::default();
    }

    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError> {
        match index {
            RECEIVE if !self.input.waits_for_socket() => self.receive()?,
            TRANSMIT if !self.output.waits_for_socket() => self.transmit()?,
            _ => {}
        }
        Ok(Progress::Done)
    }

    fn handle_event(&mut self, token: u32, readiness: Readiness) -> Result<(), DeviceError> {
        if token != SOCKET {
            return Ok(());
        }
        // Both are watched level-triggered, so what is left over comes again by itself.
        if readiness.writable && self.output.waits_for_socket() {
            self.output.socket_is_ready();
            self.transmit()?;
        }
        if readiness.readable && self.input.waits_for_socket() {
            self.receive()?;
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
        let (columns, rows) = self.shared.size.get();
        let sent_of_first = self.output.sent_of_first();
        DeviceState::encode(
            DEVICE_TYPE,
            VERSION,
            &ConsoleState {
                columns,
                rows,
                sent_of_first,
            },
        )
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state: ConsoleState = state.decode(DEVICE_TYPE, VERSION)?;
        self.shared.size.set(state.columns, state.rows);
        self.output = Output::resumed(state.sent_of_first);
        Ok(())
    }
}
