//! What a device model is: the trait, and what it is given when its driver is ready.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::queue::{QueueError, QueueState, ShortBuffer, Virtqueue};
use crate::{GuestMemory, Interrupt, Readiness, Registrar};

/// A virtio device model.
///
/// # Order of calls
/// One lock serialises all calls, whichever thread they come from.
/// 1. Before activation only `device_type`, `features`, `queue_max_sizes`, `read_config`, `write_config` and `restore`.
/// 2. [`activate`](Self::activate) when the driver sets `DRIVER_OK`. Every queue is then kicked once.
/// 3. [`process_queue`](Self::process_queue) and [`handle_event`](Self::handle_event) on the event loop.
/// 4. [`pause`](Self::pause), then [`save`](Self::save) as often as wanted, then [`resume`](Self::resume), after which
///    every queue is kicked once. Nothing else is called while paused, but for `read_config` and `queue_states`.
/// 5. [`reset`](Self::reset) at any time, back to 1. Also called after an error of step 3, and before the device is dropped.
///
/// A callback does not block and ends after a bounded amount of work, except in a device whose
/// [`placement`](Self::placement) is its own loop.
pub trait VirtioDevice: Send {
    /// The device's number in §5, such as 3 for a console.
    fn device_type(&self) -> u32;

    /// The feature bits of §5 that this device offers. Its transport adds those of §6 (`VERSION_1`, `EVENT_IDX`,
    /// `INDIRECT_DESC`).
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two up to [`MAX_QUEUE_SIZE`](crate::queue::MAX_QUEUE_SIZE).
    /// Its length is the number of queues, and does not change.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads from the configuration space. Bytes beyond its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the configuration space. What is not writable is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Where the device wants to run.
    fn placement(&self) -> Placement {
        Placement::Shared
    }

    /// The driver is ready: take its queues and begin.
    ///
    /// # Errors
    /// The device asks for a reset then and stays inactive.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Back to the state before activation: give up queues, memory and event sources. Host-side connections that
    /// belong to the device itself (a console's stream) stay.
    fn reset(&mut self);

    /// The driver kicked queue `index`, or the loop calls again after [`Progress::More`]. May be spurious.
    ///
    /// # Errors
    /// The device asks its driver for a reset.
    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError>;

    /// A host descriptor that was registered under `token` is ready. May be spurious, also shortly after the
    /// registration ended.
    ///
    /// # Errors
    /// The device asks its driver for a reset.
    fn handle_event(&mut self, token: u32, readiness: Readiness) -> Result<(), DeviceError> {
        let _ = (token, readiness);
        Ok(())
    }

    /// Ends or withdraws everything in flight, so that memory and queues are at rest when this returns.
    ///
    /// # Errors
    /// Something in flight could not be brought to an end.
    fn pause(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Goes on after [`pause`](Self::pause).
    fn resume(&mut self) {}

    /// Set-up and position of each queue; empty before activation.
    fn queue_states(&self) -> Vec<QueueState>;

    /// The device's own state, without its queues.
    ///
    /// # Errors
    /// The state cannot be written down.
    fn save(&self) -> Result<DeviceState, StateError>;

    /// Takes over a state of [`save`](Self::save), before activation.
    ///
    /// # Errors
    /// The state is of another device or version, or contradicts itself.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
}

/// Where a device wants to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// On a loop together with other devices: its callbacks never block.
    Shared,
    /// On a loop of its own: its callbacks wait for files.
    Dedicated,
}

/// Whether a device is done with a queue for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The queue is empty, or waits for a host descriptor or a kick.
    Done,
    /// There is more to do now; other devices get their turn first.
    More,
}

/// All that a device may use, given to it when its driver is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// As many queues as the device has. Those that the driver did not set up are not [ready](Virtqueue::is_ready).
    pub queues: Vec<Virtqueue>,
    /// The way to the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// The negotiated feature bits, a subset of those offered.
    pub features: u64,
    /// Where to register host descriptors.
    pub events: Registrar,
}

/// Why a device could not start.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The transport handed over another number of queues than the device has.
    #[error("the device has {expected} queues, the transport handed over {found}")]
    Queues {
        /// What the device has.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A queue is not usable.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A host descriptor could not be made or registered.
    #[error("a host descriptor could not be set up: {0}")]
    Io(#[from] io::Error),
    /// A combination of features that the device cannot serve.
    #[error("features not served together: {0}")]
    Features(&'static str),
}

/// Why a running device cannot go on with this driver. It asks the driver for a reset; the monitor lives on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A broken queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// A driver that breaks the device's own rules.
    #[error("the driver broke the device's protocol: {0}")]
    Protocol(&'static str),
    /// The host failed in a way that is no single request's failure.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl From<ShortBuffer> for DeviceError {
    fn from(error: ShortBuffer) -> Self {
        match error {
            ShortBuffer::Short(_) => Self::Protocol("a buffer is too short"),
            ShortBuffer::Queue(error) => error.into(),
        }
    }
}

/// A device's saved state: what it is, the version of its format, and the format's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// The device's number in §5.
    pub device_type: u32,
    /// Version of the device's own structure.
    pub version: u32,
    /// That structure, in postcard's format.
    pub data: Vec<u8>,
}

impl DeviceState {
    /// Writes `state` down.
    ///
    /// # Errors
    /// It does not serialise.
    pub fn encode<T: Serialize>(
        device_type: u32,
        version: u32,
        state: &T,
    ) -> Result<Self, StateError> {
        let data = postcard::to_stdvec(state).map_err(StateError::Encode)?;
        Ok(Self {
            device_type,
            version,
            data,
        })
    }

    /// Reads the structure back.
    ///
    /// # Errors
    /// It is of another device or version, or does not parse.
    pub fn decode<T: for<'de> Deserialize<'de>>(
        &self,
        device_type: u32,
        version: u32,
    ) -> Result<T, StateError> {
        if self.device_type != device_type {
            return Err(StateError::Device {
                expected: device_type,
                found: self.device_type,
            });
        }
        if self.version != version {
            return Err(StateError::Version {
                expected: version,
                found: self.version,
            });
        }
        postcard::from_bytes(&self.data).map_err(StateError::Decode)
    }
}

/// Why a state cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The state belongs to another kind of device.
    #[error("the state is of device type {found}, this is {expected}")]
    Device {
        /// This device.
        expected: u32,
        /// The state's device.
        found: u32,
    },
    /// The state was written by another version of the device.
    #[error("the state has version {found}, this build reads {expected}")]
    Version {
        /// What this build reads.
        expected: u32,
        /// What the state says.
        found: u32,
    },
    /// The state does not serialise.
    #[error("the state cannot be written: {0}")]
    Encode(#[source] postcard::Error),
    /// The state does not parse.
    #[error("the state cannot be read: {0}")]
    Decode(#[source] postcard::Error),
    /// The state contradicts itself or this device's set-up.
    #[error("the state does not fit: {0}")]
    Mismatch(&'static str),
    /// Nothing can be saved while the device runs.
    #[error("pause the device before saving it")]
    Running,
}

/// Serves a read of a configuration space that consists of `bytes`.
pub(crate) fn read_config_bytes(bytes: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..));
    data.iter_mut()
        .zip(from.unwrap_or_default())
        .for_each(|(to, from)| *to = *from);
}
