//! The device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestAddressSpace;

use super::config::{
    self, ACTUAL_OFFSET, F_DEFLATE_ON_OOM, F_REPORTING, F_STATISTICS, PAGE, Role, role,
};
use super::metrics::BalloonMetrics;
use super::pages;
use super::state::{BalloonState, VERSION};
use super::statistics::BalloonStatistics;
use crate::device::read_config_bytes;
use crate::reactor::{drain, signal};
use crate::{
    ActivateError, Activation, DeviceError, DeviceState, GuestMemory, GuestRam, Interrupt,
    Progress, QueueState, Registrar, StateError, VirtioDevice, Virtqueue,
};

const DEVICE_TYPE: u32 = 5;
const QUEUE_SIZES: [u16; 4] = [256, 256, 16, 64];
/// Requests served per call: each may cost a system call for every page.
const BUDGET: u32 = 16;

/// A memory balloon.
pub struct Balloon {
    shared: Arc<Shared>,
    active: Option<Active>,
}

struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Virtqueue>,
    features: u64,
}

struct Shared {
    wanted: AtomicU32,
    actual: AtomicU32,
    statistics_wanted: AtomicBool,
    statistics: Mutex<(u64, BalloonStatistics)>,
    changed: OwnedFd,
    metrics: BalloonMetrics,
    driver: Mutex<Option<Driver>>,
}

/// The way to the driver while there is one.
#[derive(Clone)]
struct Driver {
    interrupt: Arc<dyn Interrupt>,
    events: Registrar,
    /// The statistics queue, if it was negotiated.
    statistics: Option<u16>,
}

impl Shared {
    fn driver(&self) -> MutexGuard<'_, Option<Driver>> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn statistics(&self) -> MutexGuard<'_, (u64, BalloonStatistics)> {
        self.statistics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The host's control over a [`Balloon`], usable from any thread.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to give so many bytes in all, rounded down to pages of 4 KiB; 0 lets it have everything. It gives
    /// what it can, in its own time.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.0.wanted.store(pages, Ordering::Release);
        let driver = self.0.driver().clone();
        if let Some(driver) = driver {
            driver.interrupt.signal_config();
        }
    }

    /// Bytes that the guest is asked to give.
    pub fn target(&self) -> u64 {
        u64::from(self.0.wanted.load(Ordering::Acquire)) * PAGE
    }

    /// Bytes that the guest says it has given.
    pub fn actual(&self) -> u64 {
        u64::from(self.0.actual.load(Ordering::Acquire)) * PAGE
    }

    /// Asks for new statistics. Returns whether there is a driver that gives some.
    pub fn request_statistics(&self) -> bool {
        self.0.statistics_wanted.store(true, Ordering::Release);
        let driver = self.0.driver().clone();
        let Some(Driver {
            events,
            statistics: Some(queue),
            ..
        }) = driver
        else {
            return false;
        };
        events.kick(queue);
        true
    }

    /// The last statistics, and how many there have been so far.
    pub fn statistics(&self) -> (u64, BalloonStatistics) {
        *self.0.statistics()
    }

    /// An eventfd that is readable when statistics came, or the guest changed what it has given, since the last
    /// [`clear_changed`](Self::clear_changed).
    pub fn changed(&self) -> BorrowedFd<'_> {
        self.0.changed.as_fd()
    }

    /// See [`changed`](Self::changed).
    pub fn clear_changed(&self) {
        drain(&self.0.changed);
    }

    /// The balloon's counters.
    pub fn metrics(&self) -> &BalloonMetrics {
        &self.0.metrics
    }
}

impl Balloon {
    /// An empty balloon.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new() -> io::Result<(Self, BalloonHandle)> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Arc::new(Shared {
            wanted: AtomicU32::new(0),
            actual: AtomicU32::new(0),
            statistics_wanted: AtomicBool::new(false),
            statistics: Mutex::default(),
            changed,
            metrics: BalloonMetrics::default(),
            driver: Mutex::new(None),
        });
        let handle = BalloonHandle(Arc::clone(&shared));
        Ok((
            Self {
                shared,
                active: None,
            },
            handle,
        ))
    }
}

impl Active {
    fn serve(
        &mut self,
        index: u16,
        role: Role,
        shared: &Shared,
        ram: &GuestRam,
    ) -> Result<Progress, DeviceError> {
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return Ok(Progress::Done);
        };
        queue.disable_kicks(ram)?;
        for _ in 0..BUDGET {
            let Some(chain) = queue.pop(ram)? else {
                if queue.enable_kicks(ram)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            match role {
                Role::Inflate => pages::inflate(&chain, ram, &shared.metrics)?,
                Role::Deflate => pages::deflate(&chain, ram, &shared.metrics)?,
                Role::Reporting => pages::report(&chain, ram, &shared.metrics),
                Role::Statistics => {}
            }
            queue.push(ram, chain.head(), 0)?;
        }
        Ok(Progress::More)
    }

    /// The guest leaves a buffer with its numbers in the queue. Handing it back asks for new ones.
    fn serve_statistics(
        &mut self,
        index: u16,
        shared: &Shared,
        ram: &GuestRam,
    ) -> Result<(), DeviceError> {
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return Ok(());
        };
        let Some(chain) = queue.pop(ram)? else {
            queue.enable_kicks(ram)?;
            return Ok(());
        };
        if shared.statistics_wanted.swap(false, Ordering::AcqRel) {
            queue.push(ram, chain.head(), 0)?;
            queue.enable_kicks(ram)?;
            return Ok(());
        }
        let read = BalloonStatistics::read(&chain, ram)?;
        let mut statistics = shared.statistics();
        *statistics = (statistics.0 + 1, read);
        drop(statistics);
        signal(&shared.changed);
        // It stays the guest's to see, and ours to hand back: nothing is in between when the VM is suspended.
        queue.undo_pop();
        Ok(())
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        F_STATISTICS | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let wanted = self.shared.wanted.load(Ordering::Acquire);
        let actual = self.shared.actual.load(Ordering::Acquire);
        read_config_bytes(&config::bytes(wanted, actual), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_OFFSET, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.shared
                .actual
                .store(u32::from_le_bytes(data), Ordering::Release);
            signal(&self.shared.changed);
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
        let (expected, found) = (QUEUE_SIZES.len(), queues.len());
        if expected != found {
            return Err(ActivateError::Queues { expected, found });
        }
        let mut indices = 0..expected as u16;
        let statistics = indices.find(|&index| role(index, features) == Some(Role::Statistics));
        *self.shared.driver() = Some(Driver {
            interrupt: Arc::clone(&interrupt),
            events,
            statistics,
        });
        self.active = Some(Active {
            memory,
            interrupt,
            queues,
            features,
        });
        Ok(())
    }

    fn reset(&mut self) {
        if self.active.take().is_some() {
            // The driver lost track of what it gave: all memory is its own again.
            self.shared.actual.store(0, Ordering::Release);
            self.shared
                .statistics_wanted
                .store(false, Ordering::Release);
        }
        *self.shared.driver() = None;
    }

    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let memory = active.memory.clone();
        let ram = memory.memory();
        let progress = match role(index, active.features) {
            None => return Ok(Progress::Done),
            Some(Role::Statistics) => {
                active.serve_statistics(index, &self.shared, &ram)?;
                Progress::Done
            }
            Some(role) => active.serve(index, role, &self.shared, &ram)?,
        };
        if let Some(queue) = active.queues.get_mut(usize::from(index)) {
            queue.notify(&ram, &*active.interrupt)?;
        }
        Ok(progress)
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(Virtqueue::state).collect()
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        let state = BalloonState {
            wanted_pages: self.shared.wanted.load(Ordering::Acquire),
            actual_pages: self.shared.actual.load(Ordering::Acquire),
        };
        DeviceState::encode(DEVICE_TYPE, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state: BalloonState = state.decode(DEVICE_TYPE, VERSION)?;
        self.shared
            .wanted
            .store(state.wanted_pages, Ordering::Release);
        self.shared
            .actual
            .store(state.actual_pages, Ordering::Release);
        Ok(())
    }
}
