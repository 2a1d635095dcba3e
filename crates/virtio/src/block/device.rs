//! The device: queues in front of an engine.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::SECTOR;
use super::backend::{Backend, GrowError};
use super::config::{self, F_FLUSH, QUEUE_SIZE};
use super::engine::{self, Engine, EngineKind, ThreadHook};
use super::metrics::BlockMetrics;
use super::request::ID_BYTES;
use super::requests::{Active, Context};
use super::state::{BlockState, VERSION};
use crate::device::read_config_bytes;
use crate::rate::RateLimits;
use crate::{
    ActivateError, Activation, DeviceError, DeviceState, Interrupt, Placement, Progress,
    QueueState, Readiness, StateError, VirtioDevice,
};

const DEVICE_TYPE: u32 = 2;
const MAX_QUEUES: u16 = 16;

/// How a disk is attached.
#[derive(Clone)]
pub struct BlockOptions {
    /// What the guest finds as the disk's serial number: up to 20 bytes of ASCII.
    pub serial: String,
    /// Limits of bytes and requests per second.
    pub limits: RateLimits,
    /// Number of queues, 1 to 16; a guest uses up to one for each of its processors.
    pub queues: u16,
    /// How requests run.
    pub engine: EngineKind,
    /// Number of threads where requests run on threads, 1 at least.
    pub threads: usize,
    /// Runs on each of those threads first.
    pub thread_hook: Option<ThreadHook>,
    /// Whether the format was found out from the content: then the guest may not turn a raw disk into a qcow2 image,
    /// which would be opened as one the next time.
    pub keep_raw: bool,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            serial: String::new(),
            limits: RateLimits::default(),
            queues: 1,
            engine: EngineKind::Auto,
            threads: 4,
            thread_hook: None,
            keep_raw: false,
        }
    }
}

/// Why a disk cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The serial number is not 20 bytes of ASCII at most.
    #[error("the serial number {0:?} is not ASCII of 20 bytes at most")]
    Serial(String),
    /// Too many queues, or none.
    #[error("a disk has 1 to 16 queues, not {0}")]
    Queues(u16),
    /// Threads or ring could not be made.
    #[error("the disk's {kind:?} engine cannot start: {source}")]
    Engine {
        /// The kind asked for.
        kind: EngineKind,
        /// What the host said.
        source: io::Error,
    },
}

/// A disk.
pub struct Block {
    shared: Arc<Shared>,
    options: BlockOptions,
    queue_sizes: Vec<u16>,
    engine: Box<dyn Engine>,
    active: Option<Active>,
}

pub(super) struct Shared {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) capacity_sectors: AtomicU64,
    pub(super) metrics: BlockMetrics,
    driver: Mutex<Driver>,
}

/// Whom a change of the size is told.
#[derive(Default)]
struct Driver {
    interrupt: Option<Arc<dyn Interrupt>>,
    /// The size changed while there was nobody to be told: a driver may have read the old one on its way.
    untold: bool,
}

/// The host's control over a [`Block`], usable from any thread.
#[derive(Clone)]
pub struct BlockHandle(Arc<Shared>);

impl BlockHandle {
    /// Makes the disk larger, `size` bytes, and tells the guest.
    ///
    /// # Errors
    /// [`GrowError`].
    pub fn grow(&self, size: u64) -> Result<(), GrowError> {
        self.0.backend.grow(size)?;
        self.0.set_capacity(size);
        Ok(())
    }

    /// Looks whether somebody else has changed the size of the disk's file, and tells the guest. Returns it in bytes.
    ///
    /// # Errors
    /// What the host said.
    pub fn refresh_size(&self) -> io::Result<u64> {
        let size = self.0.backend.refresh_size()?;
        self.0.set_capacity(size);
        Ok(size)
    }

    /// The disk's counters.
    pub fn metrics(&self) -> &BlockMetrics {
        &self.0.metrics
    }
}

impl Shared {
    fn set_capacity(&self, size: u64) {
        let sectors = size.div_ceil(SECTOR);
        if self.capacity_sectors.swap(sectors, Ordering::AcqRel) == sectors {
            return;
        }
        let mut driver = self.driver();
        match &driver.interrupt {
            Some(interrupt) => interrupt.signal_config(),
            None => driver.untold = true,
        }
    }

    fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        let mut driver = self.driver();
        driver.interrupt = interrupt;
        if let Some(interrupt) = driver.interrupt.clone()
            && std::mem::take(&mut driver.untold)
        {
            interrupt.signal_config();
        }
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    /// A disk with the content of `backend`. Its threads, or its ring, are made now, by the calling thread.
    ///
    /// # Errors
    /// An option is out of range, or the engine cannot start.
    pub fn new(
        backend: Arc<dyn Backend>,
        options: BlockOptions,
    ) -> Result<(Self, BlockHandle), BlockError> {
        if options.serial.len() > ID_BYTES || !options.serial.is_ascii() {
            return Err(BlockError::Serial(options.serial));
        }
        if !(1..=MAX_QUEUES).contains(&options.queues) {
            return Err(BlockError::Queues(options.queues));
        }
        let kind = options.engine;
        let engine = engine::make(kind, &backend, options.threads, options.thread_hook.clone())
            .map_err(|source| BlockError::Engine { kind, source })?;
        let shared = Arc::new(Shared {
            capacity_sectors: AtomicU64::new(backend.size().div_ceil(SECTOR)),
            backend,
            metrics: BlockMetrics::default(),
            driver: Mutex::default(),
        });
        let queue_sizes = vec![QUEUE_SIZE; usize::from(options.queues)];
        let handle = BlockHandle(Arc::clone(&shared));
        Ok((
            Self {
                shared,
                options,
                queue_sizes,
                engine,
                active: None,
            },
            handle,
        ))
    }

    /// Runs `work` on the active device, if it is.
    fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Active, &mut Context<'_>) -> Result<T, DeviceError>,
    ) -> Result<Option<T>, DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(None);
        };
        let mut context = Context {
            shared: &self.shared,
            engine: &mut *self.engine,
            serial: self.options.serial.as_bytes(),
            keep_raw: self.options.keep_raw,
        };
        work(active, &mut context).map(Some)
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        config::features(self.shared.backend.is_read_only(), self.options.queues)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let capacity = self.shared.capacity_sectors.load(Ordering::Acquire);
        read_config_bytes(&config::bytes(capacity, self.options.queues), offset, data);
    }

    fn placement(&self) -> Placement {
        Placement::Dedicated
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (expected, found) = (self.queue_sizes.len(), activation.queues.len());
        if expected != found {
            return Err(ActivateError::Queues { expected, found });
        }
        self.shared
            .set_interrupt(Some(Arc::clone(&activation.interrupt)));
        // §5.2.6.2: without the feature every write is durable before it is acknowledged.
        let write_through = activation.features & F_FLUSH == 0;
        let completion = self.engine.completion();
        self.active = Some(Active::new(
            activation,
            completion,
            self.options.limits,
            write_through,
        )?);
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.set_interrupt(None);
        // Files answer in the end; until then the host works on the guest's memory.
        self.engine.drain(&mut Vec::new());
        self.active = None;
    }

    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError> {
        let progress = self.with(|active, context| active.process_queue(index, context))?;
        Ok(progress.unwrap_or(Progress::Done))
    }

    fn handle_event(&mut self, token: u32, _readiness: Readiness) -> Result<(), DeviceError> {
        self.with(|active, context| active.handle_event(token, context))
            .map(|_| ())
    }

    fn pause(&mut self) -> Result<(), DeviceError> {
        self.with(Active::drain)?;
        let settled = self.shared.backend.settle();
        settled.map_err(|source| DeviceError::Io {
            doing: "writing down the disk image",
            source,
        })
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active.iter().flat_map(Active::queue_states).collect()
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let state = BlockState {
            capacity_sectors: self.shared.capacity_sectors.load(Ordering::Acquire),
            read_only: self.shared.backend.is_read_only(),
        };
        DeviceState::encode(DEVICE_TYPE, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state: BlockState = state.decode(DEVICE_TYPE, VERSION)?;
        if state.read_only != self.shared.backend.is_read_only() {
            return Err(StateError::Mismatch(
                "the disk was writable and is not, or the other way",
            ));
        }
        if state.capacity_sectors != self.shared.capacity_sectors.load(Ordering::Acquire) {
            return Err(StateError::Mismatch("the disk had another size"));
        }
        Ok(())
    }
}
