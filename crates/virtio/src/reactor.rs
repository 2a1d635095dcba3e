//! The event loop that devices run on: one epoll set, woken by queue kicks and host descriptors.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::io::Errno;

use crate::mount::Mount;
use crate::{Progress, VirtioDevice};

/// Events taken from the kernel at once.
const BATCH: usize = 64;

/// What to wait for on a descriptor. Hang-up and error are always told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Something can be read.
    Readable,
    /// Something can be written.
    Writable,
    /// Either.
    Both,
    /// Neither: only that the other side is gone.
    Hangup,
}

impl Interest {
    /// The union of two wishes, `None` for neither.
    pub fn from_wishes(readable: bool, writable: bool) -> Option<Self> {
        match (readable, writable) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::Readable),
            (false, true) => Some(Self::Writable),
            (false, false) => None,
        }
    }

    fn flags(self) -> EventFlags {
        match self {
            Self::Readable => EventFlags::IN | EventFlags::RDHUP,
            Self::Writable => EventFlags::OUT,
            Self::Hangup => EventFlags::empty(),
            Self::Both => EventFlags::IN | EventFlags::RDHUP | EventFlags::OUT,
        }
    }
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Readiness {
    /// Reading will not block (it may return the end of the stream or an error).
    pub readable: bool,
    /// Writing will not block (it may return an error).
    pub writable: bool,
    /// The other side is gone altogether.
    pub hangup: bool,
    /// An error is pending.
    pub error: bool,
}

impl From<EventFlags> for Readiness {
    fn from(flags: EventFlags) -> Self {
        let gone = flags.intersects(EventFlags::HUP | EventFlags::ERR);
        Self {
            readable: gone || flags.intersects(EventFlags::IN | EventFlags::RDHUP),
            writable: gone || flags.contains(EventFlags::OUT),
            hangup: flags.contains(EventFlags::HUP),
            error: flags.contains(EventFlags::ERR),
        }
    }
}

/// The epoll set and the devices in it. One thread at a time calls [`turn`](Self::turn); see [`Worker`](crate::Worker).
pub struct Reactor {
    shared: Arc<Shared>,
    again: VecDeque<(u32, u16)>,
}

/// Adds devices to a [`Reactor`] and wakes it, from any thread.
#[derive(Clone)]
pub struct ReactorHandle {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    /// `None` once the loop is gone. Each mount refers back to this structure, so it must not stay in here.
    mounts: RwLock<Mounts>,
    next_id: AtomicU32,
}

/// The meaning of an epoll entry, packed into its 64 bits of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Wake,
    Kick(u32, u16),
    Source(u32, u32),
}

impl Key {
    const KICK: u64 = 1;
    const SOURCE: u64 = 2;
    /// Device numbers take the 28 bits above kind and token.
    const MAX_ID: u32 = (1 << 28) - 1;

    fn pack(self) -> EventData {
        let (id, kind, token) = match self {
            Self::Wake => (0, 0, 0),
            Self::Kick(id, index) => (id, Self::KICK, u32::from(index)),
            Self::Source(id, token) => (id, Self::SOURCE, token),
        };
        EventData::new_u64(u64::from(id) << 36 | kind << 32 | u64::from(token))
    }

    fn unpack(data: u64) -> Self {
        let (id, kind, token) = ((data >> 36) as u32, data >> 32 & 0xf, data as u32);
        match kind {
            Self::KICK => Self::Kick(id, token as u16),
            Self::SOURCE => Self::Source(id, token),
            _ => Self::Wake,
        }
    }
}

impl Reactor {
    /// An empty loop.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, Key::Wake.pack(), EventFlags::IN)?;
        let shared = Shared {
            epoll,
            wake,
            mounts: RwLock::new(Some(BTreeMap::new())),
            next_id: AtomicU32::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            again: VecDeque::new(),
        })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ReactorHandle {
        ReactorHandle {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Waits up to `timeout` (`None`: until something happens) and serves what is ready, once.
    ///
    /// Returns whether anything was served.
    ///
    /// # Errors
    /// epoll itself failed.
    pub fn turn(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let timeout = if self.again.is_empty() {
            timeout
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout
            .map(Timespec::try_from)
            .transpose()
            .unwrap_or_default();
        let shared = Arc::clone(&self.shared);
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; BATCH];
        let events = match epoll::wait(&shared.epoll, &mut events[..], timeout.as_ref()) {
            Ok((events, _)) => &*events,
            Err(Errno::INTR) => &[],
            Err(errno) => return Err(errno.into()),
        };
        let mut served = false;
        // Those who asked for another turn come before what is new, each once.
        for _ in 0..self.again.len() {
            let Some((id, index)) = self.again.pop_front() else {
                break;
            };
            served = true;
            self.kick(id, index);
        }
        for event in events {
            served = true;
            match Key::unpack(event.data.u64()) {
                Key::Wake => drain(&self.shared.wake),
                Key::Kick(id, index) => self.kick(id, index),
                Key::Source(id, token) => {
                    if let Some(mount) = self.mount(id) {
                        mount.dispatch_event(token, Readiness::from(event.flags));
                    }
                }
            }
        }
        Ok(served)
    }

    /// All devices on this loop, in the order in which they were added.
    pub fn mounts(&self) -> Vec<Arc<Mount>> {
        self.shared.mounts()
    }

    fn kick(&mut self, id: u32, index: u16) {
        let Some(mount) = self.mount(id) else { return };
        let more = mount.dispatch_kick(index) == Progress::More;
        if more && !self.again.contains(&(id, index)) {
            self.again.push_back((id, index));
        }
    }

    fn mount(&self, id: u32) -> Option<Arc<Mount>> {
        self.shared.read().as_ref()?.get(&id).cloned()
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        let mounts = self.shared.write().take();
        for mount in mounts.into_iter().flat_map(BTreeMap::into_values) {
            mount.reset();
            mount.unregister_kicks();
        }
    }
}

impl ReactorHandle {
    /// Puts a device on the loop. It does nothing before its transport activates it.
    ///
    /// # Errors
    /// No descriptors are left for the kicks, or the loop has ended.
    pub fn add(&self, device: Box<dyn VirtioDevice>) -> io::Result<Arc<Mount>> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        if id > Key::MAX_ID {
            return Err(io::Error::other(
                "too many devices were added to one event loop",
            ));
        }
        let registrar = Registrar {
            shared: Arc::clone(&self.shared),
            id,
        };
        let mount = Arc::new(Mount::new(device, registrar)?);
        match self.shared.write().as_mut() {
            Some(mounts) => mounts.insert(id, Arc::clone(&mount)),
            None => return Err(io::Error::other("the event loop has ended")),
        };
        Ok(mount)
    }

    /// Resets a device and takes it off the loop.
    pub fn remove(&self, mount: &Arc<Mount>) {
        if let Some(mounts) = self.shared.write().as_mut() {
            mounts.retain(|_, other| !Arc::ptr_eq(other, mount));
        }
        mount.reset();
        mount.unregister_kicks();
    }

    /// Makes [`Reactor::turn`] return.
    pub fn wake(&self) {
        signal(&self.shared.wake);
    }

    /// All devices on this loop.
    pub fn mounts(&self) -> Vec<Arc<Mount>> {
        self.shared.mounts()
    }
}

type Mounts = Option<BTreeMap<u32, Arc<Mount>>>;

impl Shared {
    fn mounts(&self) -> Vec<Arc<Mount>> {
        self.read()
            .iter()
            .flat_map(BTreeMap::values)
            .cloned()
            .collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Mounts> {
        self.mounts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Mounts> {
        self.mounts.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers one device's host descriptors with its loop.
#[derive(Clone)]
pub struct Registrar {
    shared: Arc<Shared>,
    id: u32,
}

impl Registrar {
    /// Wraps a descriptor; nothing is watched before [`Source::watch`].
    ///
    /// `token` comes back in [`VirtioDevice::handle_event`].
    pub fn source<F: AsFd>(&self, fd: F, token: u32) -> Source<F> {
        Source {
            fd,
            token,
            interest: None,
            registrar: self.clone(),
        }
    }

    /// Has [`VirtioDevice::process_queue`] called for queue `index` once more, after others had their turn.
    pub fn kick(&self, index: u16) {
        let mount = self
            .shared
            .read()
            .as_ref()
            .and_then(|mounts| mounts.get(&self.id).cloned());
        if let Some(mount) = mount {
            mount.kick(index);
        }
    }

    /// Watches an eventfd for kicks of queue `index`. Edge-triggered: it need not be read.
    pub(crate) fn add_kick(&self, fd: BorrowedFd<'_>, index: u16) -> io::Result<()> {
        let key = Key::Kick(self.id, index).pack();
        Ok(epoll::add(
            &self.shared.epoll,
            fd,
            key,
            EventFlags::IN | EventFlags::ET,
        )?)
    }

    pub(crate) fn remove_kick(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.shared.epoll, fd);
    }
}

/// A host descriptor of a device, watched (level-triggered) as long as the device wants.
///
/// Dropping it ends the watch before the descriptor is closed.
pub struct Source<F: AsFd> {
    fd: F,
    token: u32,
    interest: Option<Interest>,
    registrar: Registrar,
}

impl<F: AsFd> Source<F> {
    /// Watches for `interest`, or not at all. No system call if that is what is being watched already.
    ///
    /// # Errors
    /// epoll refuses the descriptor (a plain file for one).
    pub fn watch(&mut self, interest: Option<Interest>) -> io::Result<()> {
        if interest == self.interest {
            return Ok(());
        }
        let epoll = &self.registrar.shared.epoll;
        let key = Key::Source(self.registrar.id, self.token).pack();
        match (self.interest, interest) {
            (None, Some(wanted)) => epoll::add(epoll, &self.fd, key, wanted.flags())?,
            (Some(_), Some(wanted)) => epoll::modify(epoll, &self.fd, key, wanted.flags())?,
            (_, None) => epoll::delete(epoll, &self.fd)?,
        }
        self.interest = interest;
        Ok(())
    }

    /// What is being watched for.
    pub fn interest(&self) -> Option<Interest> {
        self.interest
    }

    /// The descriptor.
    pub fn get_ref(&self) -> &F {
        &self.fd
    }
}

impl<F: AsFd> AsFd for Source<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<F: AsFd> Drop for Source<F> {
    fn drop(&mut self) {
        // It may be open elsewhere too, so that closing it would not end the watch.
        let _ = self.watch(None);
    }
}

pub(crate) fn signal(fd: &OwnedFd) {
    // It fails only when the counter is full, and then the other side is being woken anyhow.
    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
}

pub(crate) fn drain(fd: &OwnedFd) {
    let _ = rustix::io::read(fd, &mut [0u8; 8]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_survives_packing_for_extreme_numbers() {
        let keys = [
            Key::Wake,
            Key::Kick(0, 0),
            Key::Kick(Key::MAX_ID, u16::MAX),
            Key::Source(Key::MAX_ID, u32::MAX),
            Key::Source(1, 7),
        ];
        for key in keys {
            assert_eq!(Key::unpack(key.pack().u64()), key);
        }
    }
}
