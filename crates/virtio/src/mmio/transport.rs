//! The register block: feature negotiation, the status state machine, queue set-up.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestAddressSpace;

use super::interrupt::MmioInterrupt;
use super::registers::{self as reg, status};
use super::state::{MmioState, VERSION};
use crate::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::{
    ActivateError, GuestMemory, Interrupt, InterruptLine, Mount, QueueConfig, QueueError,
    QueueState, StateError, Virtqueue,
};

/// What the transport offers beside the device's own bits.
const TRANSPORT_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;

/// One virtio-mmio device: a block of registers in front of a [`Mount`].
///
/// All methods take `&self` and may be called by several vCPU threads at once. None of them waits for the device's
/// queues to be worked on, except for a callback of the device that is running at the moment.
pub struct MmioTransport {
    mount: Arc<Mount>,
    memory: GuestMemory,
    interrupt: Arc<MmioInterrupt>,
    registers: Mutex<Registers>,
}

struct Registers {
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    shm_sel: u32,
    queues: Vec<QueueConfig>,
}

impl MmioTransport {
    /// Puts a device behind registers. `line` is raised as an edge.
    pub fn new(mount: Arc<Mount>, memory: GuestMemory, line: Arc<dyn InterruptLine>) -> Self {
        let registers = Mutex::new(Registers::new(mount.queue_max_sizes().len()));
        Self {
            mount,
            memory,
            interrupt: Arc::new(MmioInterrupt::new(line)),
            registers,
        }
    }

    /// The device behind the registers. Its [kick descriptors](Mount::kick_fd) are for KVM's ioeventfds at offset
    /// [`NOTIFY_OFFSET`](Self::NOTIFY_OFFSET), matching the queue's number as 32 bits.
    pub fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    /// Where the driver writes the number of the queue that it kicks.
    pub const NOTIFY_OFFSET: u64 = reg::QUEUE_NOTIFY;

    /// Interrupts that the host failed to deliver.
    pub fn lost_interrupts(&self) -> u64 {
        self.interrupt.lost.load(Ordering::Relaxed)
    }

    /// Whether the driver has set `DRIVER_OK` and the device has neither failed nor been reset.
    pub fn is_running(&self) -> bool {
        self.registers().status & status::DRIVER_OK != 0 && !self.needs_reset()
    }

    /// The guest reads `data.len()` bytes at `offset` from the start of the region.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            return self.mount.read_config(offset, data);
        }
        // §4.2.2.2: registers are read as aligned words. Anything else gives zeroes.
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        *data = self.read_register(offset).to_le_bytes();
    }

    /// The guest writes `data` at `offset` from the start of the region.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            return self.mount.write_config(offset, data);
        }
        let Ok(data) = <[u8; 4]>::try_from(data) else {
            return;
        };
        self.write_register(offset, u32::from_le_bytes(data));
    }

    /// Resets device and registers, as a driver does by writing zero to the status.
    pub fn reset(&self) {
        self.reset_locked(&mut self.registers());
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => return reg::MAGIC,
            reg::VERSION => return reg::MMIO_VERSION,
            reg::DEVICE_ID => return self.mount.device_type(),
            reg::VENDOR_ID => return reg::VENDOR,
            reg::INTERRUPT_STATUS => return self.interrupt.status.load(Ordering::Acquire),
            reg::CONFIG_GENERATION => return self.interrupt.generation.load(Ordering::Acquire),
            _ => {}
        }
        let registers = self.registers();
        match offset {
            reg::DEVICE_FEATURES => half(self.offered(), registers.device_features_sel),
            reg::QUEUE_NUM_MAX => self
                .max_size(registers.queue_sel)
                .map(u32::from)
                .unwrap_or_default(),
            reg::QUEUE_READY => registers.queue().is_some_and(|queue| queue.ready).into(),
            reg::STATUS => {
                let needs_reset = self.needs_reset();
                registers.status
                    | if needs_reset {
                        status::DEVICE_NEEDS_RESET
                    } else {
                        0
                    }
            }
            // §4.2.2.1: a length of all ones says that there is no such region, as is so for every one.
            reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH if offset.is_multiple_of(4) => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            reg::QUEUE_NOTIFY => {
                return u16::try_from(value)
                    .map(|index| self.mount.kick(index))
                    .unwrap_or(());
            }
            reg::INTERRUPT_ACK => {
                self.interrupt.status.fetch_and(!value, Ordering::AcqRel);
                return;
            }
            _ => {}
        }
        let mut registers = self.registers();
        match offset {
            reg::DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            reg::DRIVER_FEATURES => registers.accept_features(value),
            reg::QUEUE_SEL => registers.queue_sel = value,
            reg::SHM_SEL => registers.shm_sel = value,
            reg::STATUS => self.set_status(&mut registers, value),
            reg::QUEUE_READY => self.set_queue_ready(&mut registers, value),
            _ => registers.set_up_queue(offset, value),
        }
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        if value == 0 {
            return self.reset_locked(registers);
        }
        let value = value & status::DRIVER_BITS;
        // §2.1.1: a driver must not clear a bit, except by a reset.
        if value & registers.status != registers.status {
            return;
        }
        let mut new = value & !registers.status;
        if new & status::FEATURES_OK != 0 && !self.features_acceptable(registers.driver_features) {
            // §3.1.1 step 6: the driver reads the bit back, and finds it clear.
            new &= !status::FEATURES_OK;
        }
        let negotiated = (registers.status | new) & status::FEATURES_OK != 0;
        if new & status::DRIVER_OK != 0 && !negotiated {
            new &= !status::DRIVER_OK;
        }
        registers.status |= new;
        if new & status::DRIVER_OK != 0 {
            let positions = vec![(0, 0); registers.queues.len()];
            if let Err(error) = self.activate(registers, &positions) {
                self.fail(&error);
            }
        }
    }

    fn features_acceptable(&self, accepted: u64) -> bool {
        accepted & !self.offered() == 0 && accepted & F_VERSION_1 != 0
    }

    fn set_queue_ready(&self, registers: &mut Registers, value: u32) {
        let Some(max_size) = self.max_size(registers.queue_sel) else {
            return;
        };
        let features = registers.driver_features;
        if !registers.may_set_up_queues() {
            return;
        }
        let Some(queue) = registers.queue_mut() else {
            return;
        };
        if value != 1 {
            queue.ready = false;
            return;
        }
        let config = QueueConfig {
            ready: true,
            ..*queue
        };
        match Virtqueue::new(0, config, max_size, features, &self.memory.memory()) {
            Ok(_) => queue.ready = true,
            Err(error) => self.fail(&error.into()),
        }
    }

    fn activate(
        &self,
        registers: &Registers,
        positions: &[(u16, u16)],
    ) -> Result<(), ActivateError> {
        let ram = self.memory.memory();
        let features = registers.driver_features;
        let sizes = self.mount.queue_max_sizes();
        let queues = registers
            .queues
            .iter()
            .zip(sizes)
            .zip(positions)
            .enumerate();
        let queues = queues
            .map(|(index, ((&config, &max), &(available, used)))| {
                let mut queue = Virtqueue::new(index as u16, config, max, features, &ram)?;
                queue.set_position(available, used);
                Ok(queue)
            })
            .collect::<Result<Vec<_>, QueueError>>()?;
        let interrupt: Arc<dyn Interrupt> = self.interrupt.clone();
        self.mount
            .activate(self.memory.clone(), queues, interrupt, features)
    }

    fn fail(&self, error: &ActivateError) {
        tracing::warn!(device_type = self.mount.device_type(), %error, "a virtio device cannot start");
        self.interrupt.signal_needs_reset();
    }

    fn reset_locked(&self, registers: &mut Registers) {
        self.mount.reset();
        *registers = Registers::new(registers.queues.len());
        self.interrupt.status.store(0, Ordering::Release);
        self.interrupt.needs_reset.store(false, Ordering::Release);
    }

    fn offered(&self) -> u64 {
        self.mount.features() | TRANSPORT_FEATURES
    }

    fn max_size(&self, queue: u32) -> Option<u16> {
        self.mount.queue_max_sizes().get(queue as usize).copied()
    }

    fn needs_reset(&self) -> bool {
        self.interrupt.needs_reset.load(Ordering::Acquire)
    }

    /// Writes down transport and device. The device must be [paused](Mount::pause), and no vCPU running.
    ///
    /// # Errors
    /// The device is running, or its state cannot be written.
    pub fn save(&self) -> Result<MmioState, StateError> {
        let registers = self.registers();
        let mut queues: Vec<QueueState> = registers
            .queues
            .iter()
            .map(|&config| QueueState {
                config,
                ..QueueState::default()
            })
            .collect();
        for (queue, running) in queues.iter_mut().zip(self.mount.queue_states()) {
            *queue = running;
        }
        Ok(MmioState {
            version: VERSION,
            status: registers.status,
            needs_reset: self.needs_reset(),
            driver_features: registers.driver_features,
            selectors: [
                registers.device_features_sel,
                registers.driver_features_sel,
                registers.queue_sel,
                registers.shm_sel,
            ],
            interrupt_status: self.interrupt.status.load(Ordering::Acquire),
            generation: self.interrupt.generation.load(Ordering::Acquire),
            queues,
            device: self.mount.save()?,
        })
    }

    /// Takes over a state of [`save`](Self::save), before any vCPU runs. A device that was running is activated, its
    /// queues are kicked, and its driver is signalled once.
    ///
    /// # Errors
    /// The state does not fit this device, or the device does not start with it.
    pub fn restore(&self, state: &MmioState) -> Result<(), MmioRestoreError> {
        let mut registers = self.registers();
        if state.version != VERSION {
            let found = state.version;
            return Err(StateError::Version {
                expected: VERSION,
                found,
            }
            .into());
        }
        if state.queues.len() != registers.queues.len() {
            return Err(StateError::Mismatch("another number of queues").into());
        }
        let negotiated = state.status & status::FEATURES_OK != 0;
        if negotiated && !self.features_acceptable(state.driver_features) {
            return Err(StateError::Mismatch("features that this device does not offer").into());
        }
        self.mount.restore(&state.device)?;
        let [device_features_sel, driver_features_sel, queue_sel, shm_sel] = state.selectors;
        *registers = Registers {
            status: state.status & status::DRIVER_BITS,
            driver_features: state.driver_features,
            device_features_sel,
            driver_features_sel,
            queue_sel,
            shm_sel,
            queues: state.queues.iter().map(|queue| queue.config).collect(),
        };
        self.interrupt
            .status
            .store(state.interrupt_status, Ordering::Release);
        self.interrupt
            .generation
            .store(state.generation, Ordering::Release);
        self.interrupt
            .needs_reset
            .store(state.needs_reset, Ordering::Release);
        if negotiated && state.status & status::DRIVER_OK != 0 && !state.needs_reset {
            let positions: Vec<_> = state
                .queues
                .iter()
                .map(|queue| (queue.next_available, queue.next_used))
                .collect();
            self.activate(&registers, &positions)?;
            // An edge may have been lost on the way: the driver looks at all its queues.
            self.interrupt.signal_queue(0);
        }
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registers {
    fn new(queues: usize) -> Self {
        Self {
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            shm_sel: 0,
            queues: vec![QueueConfig::default(); queues],
        }
    }

    fn accept_features(&mut self, value: u32) {
        let settled = self.status & (status::FEATURES_OK | status::FAILED) != 0;
        if settled || self.status & status::DRIVER == 0 {
            return;
        }
        let (mask, value) = match self.driver_features_sel {
            0 => (0xffff_ffff, u64::from(value)),
            1 => (0xffff_ffff << 32, u64::from(value) << 32),
            _ => return,
        };
        self.driver_features = self.driver_features & !mask | value;
    }

    fn may_set_up_queues(&self) -> bool {
        self.status & status::FEATURES_OK != 0
            && self.status & (status::DRIVER_OK | status::FAILED) == 0
    }

    fn set_up_queue(&mut self, offset: u64, value: u32) {
        if !self.may_set_up_queues() {
            return;
        }
        let Some(queue) = self.queue_mut().filter(|queue| !queue.ready) else {
            return;
        };
        match offset {
            // A number that does not fit is kept as one that no check accepts.
            reg::QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            reg::QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            reg::QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            reg::QUEUE_DRIVER_LOW => set_low(&mut queue.available, value),
            reg::QUEUE_DRIVER_HIGH => set_high(&mut queue.available, value),
            reg::QUEUE_DEVICE_LOW => set_low(&mut queue.used, value),
            reg::QUEUE_DEVICE_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn queue(&self) -> Option<&QueueConfig> {
        self.queues.get(self.queue_sel as usize)
    }

    fn queue_mut(&mut self) -> Option<&mut QueueConfig> {
        self.queues.get_mut(self.queue_sel as usize)
    }
}

fn half(value: u64, selector: u32) -> u32 {
    match selector {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

/// Why a transport cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum MmioRestoreError {
    /// The state does not fit.
    #[error(transparent)]
    State(#[from] StateError),
    /// The device does not start with it.
    #[error("the device does not start from its saved state: {0}")]
    Activate(#[from] ActivateError),
}
