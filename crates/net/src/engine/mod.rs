//! The engine: one thread, one event loop, all guests of one network.

pub(crate) mod decisions;
pub(crate) mod frames;
pub(crate) mod gateway;
pub(crate) mod guest;
pub(crate) mod outbox;
pub(crate) mod requests;
pub(crate) mod send;
pub(crate) mod timers;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;

use self::guest::Guest;
use self::requests::Control;
use self::timers::{Deadline, Timers};
use crate::capture::Capture;
use crate::control::Notice;
use crate::dns::forwarder::Dns;
use crate::forward::Forwards;
use crate::link::{Arena, Link};
use crate::nat::datagram::DatagramFlows;
use crate::nat::tcp::TcpFlows;
use crate::services::ndp;
use crate::wire::frame::FramePool;
use crate::{ConfigError, NetworkConfig};

/// Why a network could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is not one frame socket for each guest.
    #[error(
        "{guests} guests and {sockets} frame sockets: hand over one for each guest, in the same order"
    )]
    Sockets {
        /// How many guests the configuration has.
        guests: usize,
        /// How many sockets were handed over.
        sockets: usize,
    },
    /// A forward cannot be opened.
    #[error(transparent)]
    Forward(#[from] crate::control::Refusal),
    /// The system refused something.
    #[error("the network cannot be set up: {0}")]
    Io(#[from] io::Error),
}

/// What a descriptor belongs to; with an index, the number by which the event loop knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Control,
    Link(usize),
    Tcp(usize),
    Datagram(usize),
    Dns(usize),
    Forward(usize),
}

impl Source {
    const fn token(self) -> Token {
        let (kind, index) = match self {
            Self::Control => (0, 0),
            Self::Link(index) => (1, index),
            Self::Tcp(index) => (2, index),
            Self::Datagram(index) => (3, index),
            Self::Dns(index) => (4, index),
            Self::Forward(index) => (5, index),
        };
        Token(index << 3 | kind)
    }

    const fn of(token: Token) -> Self {
        let index = token.0 >> 3;
        match token.0 & 7 {
            1 => Self::Link(index),
            2 => Self::Tcp(index),
            3 => Self::Datagram(index),
            4 => Self::Dns(index),
            5 => Self::Forward(index),
            _ => Self::Control,
        }
    }
}

/// A flow by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FlowRef {
    Tcp(usize),
    Datagram(usize),
}

struct Readiness {
    source: Source,
    readable: bool,
    writable: bool,
    ending: bool,
}

/// A network that is ready to run.
pub struct Engine {
    poll: Poll,
    pub(crate) config: NetworkConfig,
    pub(crate) control: Control,
    pub(crate) guests: Slab<Guest>,
    pub(crate) tcp: TcpFlows,
    pub(crate) datagrams: DatagramFlows,
    pub(crate) dns: Dns,
    pub(crate) forwards: Forwards,
    pub(crate) capture: Option<Capture>,
    pub(crate) pool: FramePool,
    arena: Option<Arena>,
    pub(crate) timers: Timers,
    /// Flows that need a turn.
    pub(crate) ready: VecDeque<FlowRef>,
    /// Guests whose link has frames to be read, and those that have frames to be sent.
    incoming: VecDeque<usize>,
    outgoing: Vec<usize>,
    notices: HashMap<Notice, Instant>,
    pub(crate) start: Instant,
    pub(crate) now: Instant,
    pub(crate) ended: bool,
}

impl Engine {
    /// Sets a network up: `frames` has a socket for each guest of the configuration, in the same
    /// order, and `control` is the other end of a [`ControlClient`](crate::ControlClient)'s. Opens
    /// everything that a process might not be able to open any more once it is confined: the host's
    /// DNS configuration is read, forwards are bound.
    ///
    /// # Errors
    /// When the configuration is wrong, a port is in use, or the system refuses something.
    pub fn new(
        config: NetworkConfig,
        frames: Vec<OwnedFd>,
        control: UnixStream,
    ) -> Result<Self, StartError> {
        config.check()?;
        if frames.len() != config.guests.len() {
            return Err(StartError::Sockets {
                guests: config.guests.len(),
                sockets: frames.len(),
            });
        }
        control.set_nonblocking(true)?;
        let now = Instant::now();
        let mut engine = Self {
            poll: Poll::new()?,
            dns: Dns::new(config.resolver.clone()),
            control: Control::new(control),
            guests: Slab::new(),
            tcp: TcpFlows::default(),
            datagrams: DatagramFlows::default(),
            forwards: Forwards::default(),
            capture: None,
            pool: FramePool::default(),
            arena: Some(Arena::new()),
            timers: Timers::default(),
            ready: VecDeque::new(),
            incoming: VecDeque::new(),
            outgoing: Vec::new(),
            notices: HashMap::new(),
            start: now,
            now,
            ended: false,
            config,
        };
        let fd = engine.control.raw_fd();
        engine.register(fd, Source::Control)?;
        let mut taken: BTreeSet<_> = engine
            .config
            .guests
            .iter()
            .filter_map(|guest| guest.ipv4)
            .collect();
        for (guest, fd) in engine.config.guests.clone().into_iter().zip(frames) {
            let addresses = engine.config.addresses_of(&guest, &mut taken)?;
            let link = Link::new(fd, guest.frames)?;
            engine.insert_guest(guest, addresses, Some(link))?;
        }
        engine.timers.add(now + ndp::INTERVAL, Deadline::Advertise);
        Ok(engine)
    }

    /// Runs the network on this thread until the control socket closes or asks it to end.
    ///
    /// # Errors
    /// When the system's event queue fails.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut batch = Vec::with_capacity(1024);
        while !self.ended {
            let timeout = self.timeout();
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.now = Instant::now();
            batch.extend(events.iter().map(|event| Readiness {
                source: Source::of(event.token()),
                readable: event.is_readable() || event.is_error(),
                writable: event.is_writable() || event.is_error(),
                ending: event.is_read_closed() || event.is_error(),
            }));
            for readiness in batch.drain(..) {
                self.event(&readiness);
            }
            while let Some((at, deadline)) = self.timers.pop(self.now) {
                self.deadline(at, deadline);
            }
            self.turns();
            self.flush();
        }
        if let Some(capture) = &mut self.capture {
            capture.flush()?;
        }
        Ok(())
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.ready.is_empty() || !self.incoming.is_empty() {
            return Some(Duration::ZERO);
        }
        self.timers
            .next()
            .map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn event(&mut self, event: &Readiness) {
        match event.source {
            Source::Control => self.control_event(),
            Source::Link(index) => {
                if event.readable || event.ending {
                    self.list_incoming(index);
                }
                self.mark_guest(index);
            }
            Source::Tcp(index) => {
                self.tcp_event(index, event.readable, event.writable, event.ending)
            }
            Source::Datagram(index) => {
                if event.readable {
                    self.datagram_event(index);
                }
            }
            Source::Dns(index) => self.dns_event(index),
            Source::Forward(index) => self.forward_event(index),
        }
    }

    fn deadline(&mut self, at: Instant, deadline: Deadline) {
        match deadline {
            Deadline::Tcp(index) => self.tcp_timer(index, at),
            Deadline::Datagram(index) => self.datagram_timer(index),
            Deadline::Dns(index) => self.dns_timer(index),
            Deadline::Link(index) => {
                if let Some(guest) = self.guests.get_mut(index)
                    && guest.link_timer == Some(at)
                {
                    guest.link_timer = None;
                }
                self.list_incoming(index);
                self.mark_guest(index);
            }
            Deadline::Advertise => {
                for index in self
                    .guests
                    .iter()
                    .map(|(index, _)| index)
                    .collect::<Vec<_>>()
                {
                    self.advertise(index, None);
                }
                self.timers
                    .add(self.now + ndp::INTERVAL, Deadline::Advertise);
            }
        }
    }

    /// Gives each guest and each flow that asked for it one turn.
    fn turns(&mut self) {
        for _ in 0..self.incoming.len() {
            let Some(index) = self.incoming.pop_front() else {
                break;
            };
            self.guest_turn(index);
        }
        for _ in 0..self.ready.len() {
            match self.ready.pop_front() {
                Some(FlowRef::Tcp(index)) => self.tcp_turn(index),
                Some(FlowRef::Datagram(index)) => self.datagram_turn(index),
                None => break,
            }
        }
    }

    /// Sends what guests are to get.
    fn flush(&mut self) {
        for index in std::mem::take(&mut self.outgoing) {
            self.flush_guest(index);
        }
        if let Some(capture) = &mut self.capture
            && self.ready.is_empty()
            && let Err(error) = capture.flush()
        {
            self.end_capture(&error.to_string());
        }
    }

    /// Puts a guest on the list of those with frames to be read.
    pub(crate) fn list_incoming(&mut self, index: usize) {
        if let Some(guest) = self.guests.get_mut(index)
            && !guest.listed
        {
            guest.listed = true;
            self.incoming.push_back(index);
        }
    }

    /// Puts a guest on the list of those with frames to be sent.
    pub(crate) fn mark_guest(&mut self, index: usize) {
        if let Some(guest) = self.guests.get_mut(index)
            && !guest.marked
        {
            guest.marked = true;
            self.outgoing.push(index);
        }
    }

    pub(crate) const fn take_arena(&mut self) -> Option<Arena> {
        self.arena.take()
    }

    pub(crate) fn return_arena(&mut self, arena: Arena) {
        self.arena = Some(arena);
    }

    pub(crate) fn register(&self, fd: RawFd, source: Source) -> io::Result<()> {
        let interest = Interest::READABLE.add(Interest::WRITABLE);
        self.poll
            .registry()
            .register(&mut SourceFd(&fd), source.token(), interest)
    }

    pub(crate) fn deregister(&self, fd: RawFd) {
        // Fails only for one that was never registered.
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
    }

    /// The stacks' clock.
    pub(crate) fn stack_time(&self) -> smoltcp::time::Instant {
        let micros = self.now.duration_since(self.start).as_micros();
        smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// A number that nobody can guess.
    pub(crate) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        if getrandom::fill(&mut bytes).is_err() {
            // Hash keys are random as well, by other means.
            use std::hash::{BuildHasher, RandomState};
            return RandomState::new().hash_one(self.now);
        }
        u64::from_ne_bytes(bytes)
    }

    /// The descriptor of a guest's link.
    pub(crate) fn link_fd(&self, index: usize) -> Option<RawFd> {
        self.guests.get(index)?.link.as_ref().map(Link::raw_fd)
    }

    /// Tells the user something, once a minute at most.
    pub(crate) fn notify(&mut self, notice: Notice) {
        const AGAIN: Duration = Duration::from_secs(60);
        let now = self.now;
        if self.notices.len() > 64 {
            self.notices.retain(|_, at| now.duration_since(*at) < AGAIN);
        }
        let recent = self
            .notices
            .get(&notice)
            .is_some_and(|at| now.duration_since(*at) < AGAIN);
        if !recent {
            tracing::warn!("{notice}");
            self.notices.insert(notice.clone(), now);
            self.event_out(crate::control::Event::Notice(notice));
        }
    }
}

#[cfg(all(target_os = "linux", any(test, feature = "fuzzing")))]
impl Engine {
    /// Takes a frame as if its guest had sent it, from the guest's own hardware address.
    pub(crate) fn inject(&mut self, guest: usize, frame: &[u8]) {
        let mut frame = frame.to_vec();
        if let Some(state) = self.guests.get(guest) {
            crate::bytes::put(&mut frame, crate::wire::VNET + 6, &state.addresses.mac.0);
        }
        self.now = Instant::now();
        self.frame_arrived(guest, &mut frame);
        self.turns();
    }

    /// Drops what a guest was to get.
    pub(crate) fn discard_output(&mut self, guest: usize) {
        self.outgoing.clear();
        if let Some(state) = self.guests.get_mut(guest) {
            state.marked = false;
            state.outbox.clear();
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("network", &self.config.name)
            .field("guests", &self.guests.len())
            .field("control", &self.control.raw_fd().as_raw_fd())
            .finish_non_exhaustive()
    }
}
