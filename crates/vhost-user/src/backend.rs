//! What the front end's messages do to the device.
//!
//! A device has all its queues from its activation on, while a front end sets rings up, starts and stops them one by
//! one. So the device is halted with the first ring that changes, and goes on once every ring that has a kick
//! descriptor is enabled: where it was, if the rings are what they were (that is how QEMU pauses and resumes a
//! machine), and else from a reset.

use std::fs::File;
use std::io;
use std::sync::Arc;

use capsa_virtio::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use capsa_virtio::{ActivateError, GuestMemory, GuestRam, Interrupt, Mount, QueueState, Worker};
use vhost::vhost_user::message::{
    VHOST_USER_CONFIG_SIZE, VhostTransferStateDirection, VhostTransferStatePhase,
    VhostUserConfigFlags, VhostUserInflight, VhostUserLog, VhostUserMemoryRegion,
    VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags,
    VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vm_memory::GuestAddressSpace;

use crate::calls::Calls;
use crate::memory::{self, AddressTable};
use crate::rings::Ring;

/// What this transport offers besides the device's own features.
const TRANSPORT_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// A device and its front end's rings.
pub(crate) struct Backend {
    worker: Worker,
    mount: Arc<Mount>,
    /// `None` before the front end has told of any.
    memory: Option<GuestMemory>,
    addresses: AddressTable,
    rings: Vec<Ring>,
    calls: Arc<Calls>,
    features: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// It has not been activated, or has been reset.
    Idle,
    Running,
    /// At rest in this state, and with these features.
    Halted(Vec<QueueState>, u64),
}

impl Backend {
    /// The device of `mount`, which is the only one on `worker`.
    pub(crate) fn new(worker: Worker, mount: Arc<Mount>) -> Self {
        let rings = mount.queue_max_sizes().len();
        Self {
            worker,
            mount,
            memory: None,
            addresses: AddressTable::default(),
            rings: vec![Ring::default(); rings],
            calls: Arc::new(Calls::new(rings)),
            features: 0,
            phase: Phase::Idle,
        }
    }

    /// Ends the device's thread.
    pub(crate) fn stop(self) -> io::Result<()> {
        self.worker.stop()
    }

    fn offered(&self) -> u64 {
        self.mount.features() | TRANSPORT_FEATURES | PROTOCOL_FEATURES
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index))
            .ok_or(Error::InvalidParam)
    }

    /// Brings a running device to rest, and remembers where its rings are.
    fn halt(&mut self) {
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        // A device that fails to rest has been reset, and has said so.
        let _failed = self.worker.pause();
        let states = self.mount.queue_states();
        for (ring, state) in self.rings.iter_mut().zip(&states) {
            if ring.started && state.config.ready {
                ring.base = state.next_available;
            }
        }
        self.phase = if states.len() == self.rings.len() {
            Phase::Halted(states, self.features)
        } else {
            Phase::Idle
        };
    }

    /// Lets the device go on, if every ring that was started is enabled too.
    fn go_on(&mut self) {
        let mut started = self.rings.iter().filter(|ring| ring.started).peekable();
        if started.peek().is_none() || !started.all(|ring| ring.enabled) {
            return;
        }
        let Some(memory) = self.memory.clone() else {
            return;
        };
        let continues = match &self.phase {
            Phase::Running => return,
            Phase::Idle => false,
            Phase::Halted(states, features) => {
                *features == self.features
                    && self
                        .rings
                        .iter()
                        .zip(states)
                        .all(|(ring, state)| ring.continues(state))
            }
        };
        if !continues && let Err(error) = self.activate(&memory) {
            // The driver may have set up a broken ring. It is up to it to try again.
            let device_type = self.mount.device_type();
            tracing::warn!(device_type, %error, "a virtio device cannot start");
            self.phase = Phase::Idle;
            self.worker.resume();
            return;
        }
        self.phase = Phase::Running;
        self.worker.resume();
    }

    /// From a reset. The loop may be at rest or turn.
    fn activate(&self, memory: &GuestMemory) -> std::result::Result<(), ActivateError> {
        self.mount.reset();
        let ram = memory.memory();
        let queues = (0u16..).zip(&self.rings);
        let queues = queues
            .map(|(index, ring)| ring.queue(index, self.features, &ram))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let interrupt: Arc<dyn Interrupt> = self.calls.clone();
        self.mount
            .activate(memory.clone(), queues, interrupt, self.features)
    }

    fn use_memory(&mut self, ram: GuestRam, addresses: AddressTable) -> Result<()> {
        match &self.memory {
            // Devices have this one too, and see the new map from now on.
            Some(memory) => memory
                .lock()
                .map_err(|_| Error::BackendInternalError)?
                .replace(ram),
            None => self.memory = Some(GuestMemory::new(ram)),
        }
        self.addresses = addresses;
        Ok(())
    }
}

/// A descriptor of the front end's that is written to must never make the device wait.
fn without_waiting(file: &File) -> Result<()> {
    rustix::io::ioctl_fionbio(file, true)
        .map_err(|error| Error::ReqHandlerError(io::Error::from(error)))
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.halt();
        self.mount.reset();
        self.rings.fill(Ring::default());
        self.phase = Phase::Idle;
        self.worker.resume();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.offered() != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.halt();
        self.features = features & !PROTOCOL_FEATURES;
        if features & PROTOCOL_FEATURES == 0 {
            // There is no message to enable a ring then.
            self.rings.iter_mut().for_each(|ring| ring.enabled = true);
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let (ram, addresses) = memory::map(regions, files)?;
        let was_running = matches!(self.phase, Phase::Running);
        self.halt();
        self.use_memory(ram, addresses)?;
        if was_running {
            self.go_on();
        }
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?;
        self.halt();
        self.ring(index)?.set_size(size);
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        if !flags.is_empty() {
            return Err(Error::InvalidParam);
        }
        let find = |user| {
            self.addresses
                .guest_address(user)
                .ok_or(Error::InvalidParam)
        };
        let (descriptors, available, used) = (find(descriptor)?, find(available)?, find(used)?);
        self.ring(index)?;
        self.halt();
        self.ring(index)?
            .set_addresses(descriptors, available, used);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.ring(index)?;
        self.halt();
        self.ring(index)?.base = base;
        Ok(())
    }

    /// Stops the ring. The others stay at rest too, until one of them is started or enabled.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.ring(index)?;
        self.halt();
        let ring = self.ring(index)?;
        ring.started = false;
        Ok(VhostUserVringState::new(index, u32::from(ring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        // A ring without one would have to be polled.
        let file = file.ok_or(Error::InvalidOperation("a ring without a kick descriptor"))?;
        without_waiting(&file)?;
        self.ring(index.into())?;
        self.halt();
        self.mount
            .replace_kick(index.into(), file.into())
            .map_err(Error::ReqHandlerError)?;
        self.ring(index.into())?.started = true;
        self.go_on();
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        file.as_ref().map_or(Ok(()), without_waiting)?;
        self.ring(index.into())?;
        self.calls.set(index.into(), file);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _file: Option<File>) -> Result<()> {
        self.ring(index.into()).map(drop)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?;
        self.halt();
        self.ring(index)?.enabled = enable;
        self.go_on();
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let end = offset.checked_add(size).ok_or(Error::InvalidParam)?;
        if end > VHOST_USER_CONFIG_SIZE {
            return Err(Error::InvalidParam);
        }
        let mut bytes = vec![0; size as usize];
        self.mount.read_config(offset.into(), &mut bytes);
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        self.mount.write_config(offset.into(), bytes);
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(NOT_OFFERED)
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(NOT_OFFERED)
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(NOT_OFFERED)
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        Err(NOT_OFFERED)
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Err(NOT_OFFERED)
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(NOT_OFFERED)
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(NOT_OFFERED)
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(NOT_OFFERED)
    }
}

/// For messages of protocol features that were not offered.
const NOT_OFFERED: Error = Error::InvalidOperation("a message of a feature that was not offered");
