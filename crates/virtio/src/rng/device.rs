//! The device.

use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::metrics::RngMetrics;
use super::requests::serve;
use super::state::{RngState, VERSION};
use crate::rate::{Limiter, RateLimits};
use crate::{
    ActivateError, Activation, DeviceError, DeviceState, GuestMemory, Interrupt, Progress,
    QueueState, Readiness, Registrar, StateError, VirtioDevice, Virtqueue,
};

const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
const TIMER: u32 = 0;

/// An entropy device.
pub struct Rng {
    limits: RateLimits,
    metrics: Arc<RngMetrics>,
    active: Option<Active>,
}

struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    queue: Virtqueue,
    limiter: Limiter,
    events: Registrar,
}

impl Rng {
    /// A device that gives out the host's random numbers within `limits`
    /// (see [`DEFAULT_LIMITS`](super::DEFAULT_LIMITS)).
    pub fn new(limits: RateLimits) -> Self {
        Self {
            limits,
            metrics: Arc::default(),
            active: None,
        }
    }

    /// The device's counters.
    pub fn metrics(&self) -> Arc<RngMetrics> {
        Arc::clone(&self.metrics)
    }

    fn serve(&mut self) -> Result<Progress, DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let ram = active.memory.memory();
        let progress = serve(&mut active.queue, &ram, &mut active.limiter, &self.metrics)?;
        active.queue.notify(&ram, &*active.interrupt)?;
        Ok(progress)
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
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
        let [queue] = <[Virtqueue; 1]>::try_from(queues).map_err(|_| ActivateError::Queues {
            expected: QUEUE_SIZES.len(),
            found,
        })?;
        let limiter = Limiter::new(self.limits, &events, TIMER)?;
        self.active = Some(Active {
            memory,
            interrupt,
            queue,
            limiter,
            events,
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn process_queue(&mut self, _index: u16) -> Result<Progress, DeviceError> {
        self.serve()
    }

    fn handle_event(&mut self, _token: u32, _readiness: Readiness) -> Result<(), DeviceError> {
        if let Some(active) = &mut self.active {
            active.limiter.timer_fired();
            active.events.kick(0);
        }
        Ok(())
    }

    fn queue_states(&self) -> Vec<QueueState> {
        self.active
            .iter()
            .map(|active| active.queue.state())
            .collect()
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        DeviceState::encode(DEVICE_TYPE, VERSION, &RngState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        state.decode::<RngState>(DEVICE_TYPE, VERSION).map(|_| ())
    }
}
