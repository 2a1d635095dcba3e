//! The device.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::config::{FsError, FsOptions};
use super::metrics::FsMetrics;
use super::queue::serve;
use super::server::Server;
use super::state::{FsState, VERSION};
use crate::device::read_config_bytes;
use crate::{
    ActivateError, Activation, DeviceError, DeviceState, GuestMemory, Interrupt, Placement,
    Progress, QueueState, StateError, VirtioDevice, Virtqueue,
};

const DEVICE_TYPE: u32 = 26;
/// Entries of a queue: a request of a megabyte takes a descriptor for each of its pages.
const QUEUE_SIZE: u16 = 512;

/// A shared directory.
pub struct Fs {
    options: FsOptions,
    queue_sizes: Vec<u16>,
    server: Server,
    active: Option<Active>,
}

struct Active {
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Virtqueue>,
}

impl Fs {
    /// Shares the directory that `root` is (see [`FsOptions::open_directory`]).
    ///
    /// It opens this process's `/proc/self/fd`, so make it before that is out of reach. Each file that the guest knows
    /// takes a descriptor: the process's limit should be high.
    ///
    /// # Errors
    /// An option is out of range, or the host failed.
    pub fn new(root: OwnedFd, options: FsOptions) -> Result<Self, FsError> {
        options.check()?;
        let server = Server::new(root, &options)?;
        // One queue for requests that must not wait, then those for all others.
        let queue_sizes = vec![QUEUE_SIZE; usize::from(options.queues) + 1];
        Ok(Self {
            options,
            queue_sizes,
            server,
            active: None,
        })
    }

    /// The share's counters.
    pub fn metrics(&self) -> Arc<FsMetrics> {
        Arc::clone(&self.server.metrics)
    }
}

impl VirtioDevice for Fs {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.options.config_space(), offset, data);
    }

    fn placement(&self) -> Placement {
        Placement::Dedicated
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let (expected, found) = (self.queue_sizes.len(), queues.len());
        if expected != found {
            return Err(ActivateError::Queues { expected, found });
        }
        self.active = Some(Active {
            memory,
            interrupt,
            queues,
        });
        Ok(())
    }

    fn reset(&mut self) {
        if self.active.take().is_some() {
            self.server.forget_all();
        }
    }

    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let Some(queue) = active.queues.get_mut(usize::from(index)) else {
            return Ok(Progress::Done);
        };
        serve(queue, &self.server, &active.memory, &*active.interrupt)
    }

    fn queue_states(&self) -> Vec<QueueState> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(Virtqueue::state).collect()
    }

    fn save(&self) -> Result<DeviceState, StateError> {
        DeviceState::encode(DEVICE_TYPE, VERSION, &self.server.state())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state: FsState = state.decode(DEVICE_TYPE, VERSION)?;
        self.server.restore_state(&state);
        Ok(())
    }
}
