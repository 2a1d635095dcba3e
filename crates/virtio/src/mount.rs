//! A device model on its event loop, between transport and loop.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::device::{Activation, DeviceError, DeviceState, StateError};
use crate::queue::QueueState;
use crate::reactor::signal;
use crate::{
    ActivateError, GuestMemory, Interrupt, Placement, Progress, Readiness, Registrar, VirtioDevice,
    Virtqueue,
};

/// After this many, failures of one device are counted but no longer logged: a hostile driver could fill the log.
const LOGGED_FAILURES: u64 = 8;

/// A device model with its lock, its kick descriptors and its place on an event loop.
///
/// Made by [`ReactorHandle::add`](crate::ReactorHandle::add); a transport drives it from its own threads.
pub struct Mount {
    inner: Mutex<Inner>,
    kicks: Mutex<Vec<Arc<OwnedFd>>>,
    registrar: Registrar,
    device_type: u32,
    features: u64,
    queue_max_sizes: Vec<u16>,
    placement: Placement,
    failures: AtomicU64,
}

struct Inner {
    device: Box<dyn VirtioDevice>,
    phase: Phase,
    interrupt: Option<Arc<dyn Interrupt>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Inactive,
    Running,
    Paused,
}

impl Mount {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, registrar: Registrar) -> io::Result<Self> {
        let queue_max_sizes = device.queue_max_sizes().to_vec();
        let mut kicks = Vec::with_capacity(queue_max_sizes.len());
        for index in 0..queue_max_sizes.len() {
            let kick = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            registrar.add_kick(kick.as_fd(), index as u16)?;
            kicks.push(Arc::new(kick));
        }
        Ok(Self {
            device_type: device.device_type(),
            features: device.features(),
            placement: device.placement(),
            inner: Mutex::new(Inner {
                device,
                phase: Phase::Inactive,
                interrupt: None,
            }),
            kicks: Mutex::new(kicks),
            registrar,
            queue_max_sizes,
            failures: AtomicU64::new(0),
        })
    }

    /// See [`VirtioDevice::device_type`].
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// See [`VirtioDevice::features`].
    pub fn features(&self) -> u64 {
        self.features
    }

    /// See [`VirtioDevice::queue_max_sizes`].
    pub fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_max_sizes
    }

    /// See [`VirtioDevice::placement`].
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// How often the device had to ask for a reset.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The eventfd that kicks queue `index`: give it to KVM as ioeventfd.
    pub fn kick_fd(&self, index: u16) -> Option<Arc<OwnedFd>> {
        self.kicks().get(usize::from(index)).cloned()
    }

    /// Kicks queue `index` from any thread. A queue that does not exist is ignored.
    pub fn kick(&self, index: u16) {
        if let Some(fd) = self.kick_fd(index) {
            signal(&fd);
        }
    }

    /// Uses another eventfd for the kicks of queue `index`, as a vhost-user front end asks for.
    ///
    /// # Errors
    /// There is no such queue, or epoll refuses the descriptor.
    pub fn replace_kick(&self, index: u16, fd: OwnedFd) -> io::Result<()> {
        let mut kicks = self.kicks();
        let slot = kicks
            .get_mut(usize::from(index))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no such queue"))?;
        self.registrar.add_kick(fd.as_fd(), index)?;
        let old = std::mem::replace(slot, Arc::new(fd));
        self.registrar.remove_kick(old.as_fd());
        Ok(())
    }

    pub(crate) fn unregister_kicks(&self) {
        for kick in self.kicks().drain(..) {
            self.registrar.remove_kick(kick.as_fd());
        }
    }

    /// See [`VirtioDevice::read_config`].
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.lock().device.read_config(offset, data);
    }

    /// See [`VirtioDevice::write_config`].
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.lock().device.write_config(offset, data);
    }

    /// Activates the device, resetting it first if it is running.
    ///
    /// # Errors
    /// What the device says; it is inactive then.
    pub fn activate(
        &self,
        memory: GuestMemory,
        queues: Vec<Virtqueue>,
        interrupt: Arc<dyn Interrupt>,
        features: u64,
    ) -> Result<(), ActivateError> {
        let expected = self.queue_max_sizes.len();
        if queues.len() != expected {
            return Err(ActivateError::Queues {
                expected,
                found: queues.len(),
            });
        }
        {
            let mut inner = self.lock();
            // Not otherwise: the device may hold a restored state.
            if inner.phase != Phase::Inactive {
                inner.reset();
            }
            inner.interrupt = Some(Arc::clone(&interrupt));
            let events = self.registrar.clone();
            let activation = Activation {
                memory,
                queues,
                interrupt,
                features,
                events,
            };
            if let Err(error) = inner.device.activate(activation) {
                inner.reset();
                return Err(error);
            }
            inner.phase = Phase::Running;
        }
        self.kick_all();
        Ok(())
    }

    /// Resets the device. When this returns, no callback is running and none will come.
    pub fn reset(&self) {
        self.lock().reset();
    }

    /// Brings the device to rest, see [`VirtioDevice::pause`]. Does nothing if it is not running.
    ///
    /// Host descriptors stay watched: call this on a loop that does not turn meanwhile, as
    /// [`Worker::pause`](crate::Worker::pause) does.
    ///
    /// # Errors
    /// What the device says; it has failed then and asked for a reset.
    pub fn pause(&self) -> Result<(), DeviceError> {
        let mut inner = self.lock();
        if inner.phase != Phase::Running {
            return Ok(());
        }
        match inner.device.pause() {
            Ok(()) => {
                inner.phase = Phase::Paused;
                Ok(())
            }
            Err(error) => {
                self.fail(&mut inner, &error);
                Err(error)
            }
        }
    }

    /// Goes on after [`pause`](Self::pause). Every queue is kicked, and its driver is signalled, once.
    pub fn resume(&self) {
        {
            let mut inner = self.lock();
            if inner.phase != Phase::Paused {
                return;
            }
            inner.device.resume();
            inner.phase = Phase::Running;
            if let Some(interrupt) = inner.interrupt.clone() {
                (0..self.queue_max_sizes.len()).for_each(|at| interrupt.signal_queue(at as u16));
            }
        }
        self.kick_all();
    }

    /// See [`VirtioDevice::queue_states`].
    pub fn queue_states(&self) -> Vec<QueueState> {
        self.lock().device.queue_states()
    }

    /// See [`VirtioDevice::save`].
    ///
    /// # Errors
    /// The device is running, or its state cannot be written.
    pub fn save(&self) -> Result<DeviceState, StateError> {
        let inner = self.lock();
        if inner.phase == Phase::Running {
            return Err(StateError::Running);
        }
        inner.device.save()
    }

    /// See [`VirtioDevice::restore`].
    ///
    /// # Errors
    /// The device is running, or the state does not fit it.
    pub fn restore(&self, state: &DeviceState) -> Result<(), StateError> {
        let mut inner = self.lock();
        if inner.phase == Phase::Running {
            return Err(StateError::Running);
        }
        inner.device.restore(state)
    }

    pub(crate) fn dispatch_kick(&self, index: u16) -> Progress {
        let mut inner = self.lock();
        if inner.phase != Phase::Running {
            return Progress::Done;
        }
        match inner.device.process_queue(index) {
            Ok(progress) => progress,
            Err(error) => {
                self.fail(&mut inner, &error);
                Progress::Done
            }
        }
    }

    pub(crate) fn dispatch_event(&self, token: u32, readiness: Readiness) {
        let mut inner = self.lock();
        if inner.phase != Phase::Running {
            return;
        }
        if let Err(error) = inner.device.handle_event(token, readiness) {
            self.fail(&mut inner, &error);
        }
    }

    fn fail(&self, inner: &mut Inner, error: &DeviceError) {
        let device_type = self.device_type;
        match self.failures.fetch_add(1, Ordering::Relaxed) {
            ..LOGGED_FAILURES => {
                tracing::warn!(device_type, %error, "a virtio device needs a reset")
            }
            LOGGED_FAILURES => tracing::warn!(device_type, "further failures are not logged"),
            _ => {}
        }
        let interrupt = inner.interrupt.clone();
        inner.reset();
        if let Some(interrupt) = interrupt {
            interrupt.signal_needs_reset();
        }
    }

    fn kick_all(&self) {
        self.kicks().iter().for_each(|kick| signal(kick));
    }

    // A panic in a device model must not spread: its lock stays usable, and its driver can reset it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kicks(&self) -> MutexGuard<'_, Vec<Arc<OwnedFd>>> {
        self.kicks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn reset(&mut self) {
        self.device.reset();
        self.phase = Phase::Inactive;
        self.interrupt = None;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.inner
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
    }
}
