use std::sync::Arc;
use std::time::Duration;

use vm_memory::GuestAddressSpace;

use super::{CountingInterrupt, DriverQueue, guest_memory};
use crate::queue::{F_INDIRECT_DESC, F_VERSION_1};
use crate::{ActivateError, GuestMemory, Mount, Reactor, VirtioDevice, Virtqueue};

/// A device on an event loop of its own, with a test driver for each queue.
pub struct Harness {
    /// The loop, turned by the test.
    pub reactor: Reactor,
    /// The device.
    pub mount: Arc<Mount>,
    /// What it tells its driver.
    pub interrupt: Arc<CountingInterrupt>,
    /// Guest memory.
    pub memory: GuestMemory,
    /// The driver's side of each queue.
    pub queues: Vec<DriverQueue>,
    features: u64,
}

impl Harness {
    /// Mounts `device`; [`activate`](Self::activate) starts it.
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        let reactor = Reactor::new().expect("an event loop");
        let mount = reactor
            .handle()
            .add(Box::new(device))
            .expect("kick descriptors");
        let sizes = mount.queue_max_sizes();
        let memory = guest_memory(8 * sizes.len() + 8);
        let queues = sizes
            .iter()
            .enumerate()
            .map(|(index, &size)| DriverQueue::new(&memory, index as u16, size))
            .collect();
        let interrupt = CountingInterrupt::new();
        let features = F_VERSION_1 | F_INDIRECT_DESC | mount.features();
        Self {
            reactor,
            mount,
            interrupt,
            memory,
            queues,
            features,
        }
    }

    /// Mounts and starts `device` with all its features, and indirect descriptors.
    pub fn started(device: impl VirtioDevice + 'static) -> Self {
        let this = Self::new(device);
        this.activate().expect("a device that starts");
        this
    }

    /// Negotiates `features` (besides `VERSION_1`) instead of all that the device offers.
    #[must_use]
    pub fn with_features(mut self, features: u64) -> Self {
        self.features = F_VERSION_1 | features;
        self
    }

    /// Starts the device as its transport does.
    ///
    /// # Errors
    /// What the device says.
    pub fn activate(&self) -> Result<(), ActivateError> {
        let ram = self.memory.memory();
        let queues = self.queues.iter().enumerate().map(|(index, driver)| {
            let config = driver.config();
            Virtqueue::new(index as u16, config, config.size, self.features, &ram)
                .expect("sound rings")
        });
        let queues = queues.collect();
        self.mount.activate(
            self.memory.clone(),
            queues,
            self.interrupt.clone(),
            self.features,
        )
    }

    /// Turns the loop until nothing is ready any more. Panics if that does not come: the device spins.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.reactor.turn(Some(Duration::ZERO)).expect("epoll") {
                return;
            }
        }
        panic!("the device does not come to rest");
    }

    /// Kicks a queue and turns the loop until nothing is ready any more.
    pub fn kick(&mut self, index: u16) {
        self.mount.kick(index);
        self.settle();
    }

    /// Waits for the next event and serves it. For events that come from elsewhere, such as a timer.
    pub fn wait(&mut self) {
        assert!(
            self.reactor
                .turn(Some(Duration::from_secs(20)))
                .expect("epoll"),
            "no event within 20 s"
        );
    }
}
