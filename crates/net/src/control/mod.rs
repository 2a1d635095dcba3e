//! What a running network is told and what it tells: requests, replies and events over a stream
//! socket, each a 4-byte little-endian length and a postcard message. A descriptor that belongs to
//! a request comes with the request's first byte (`SCM_RIGHTS`).

#[cfg(unix)]
mod client;
#[cfg(unix)]
pub(crate) mod codec;
#[cfg(unix)]
mod server;

use std::net::SocketAddr;

use capsa_core::MacAddress;
use serde::{Deserialize, Serialize};

#[cfg(unix)]
pub use client::{ControlClient, ControlError};
#[cfg(unix)]
pub use server::{ControlRequest, ControlServer};

use crate::{
    ConfigError, Direction, Forward, FrameFormat, GuestAddresses, GuestConfig, GuestName,
    LinkConditions, Policy, PolicyEvent, Protocol, Resolver,
};

/// The longest message, in bytes; a policy with every rule there may be fits.
pub const MAX_MESSAGE: usize = 8 << 20;

/// Identifies a forward on its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ForwardId(pub u64);

/// What a network is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Request {
    /// To answer.
    Ping,
    /// To take a further guest, whose frame socket comes with the request; without one it gets its
    /// place and its forwards, and is connected later. Also gives a guest whose link is gone a new
    /// one.
    AddGuest(Box<GuestConfig>),
    /// To connect a guest by the frame socket that comes with the request, instead of by the one that
    /// it has.
    ConnectGuest(GuestName, FrameFormat),
    /// To let a guest go, with all its flows and forwards.
    RemoveGuest(GuestName),
    /// To put another policy in force; flows that it denies end at once.
    SetPolicy(GuestName, Policy),
    /// To have a guest's link behave differently.
    SetLink(GuestName, LinkConditions),
    /// To forward a port to a guest.
    AddForward(GuestName, Forward),
    /// To close a forward; connections through it go on.
    RemoveForward(ForwardId),
    /// To list its forwards.
    Forwards,
    /// To list its guests and count what they did.
    Guests,
    /// To list a guest's flows.
    Flows(GuestName),
    /// To give the allow-list that covers what a guest did while its policy only watched.
    Learned(GuestName),
    /// To write every frame of a guest, or of all of them, to the file that comes with the request,
    /// as pcapng, up to a number of bytes.
    StartCapture(Option<GuestName>, u64),
    /// To end the capture.
    StopCapture,
    /// Whether to send an event for each decision of a policy.
    SubscribePolicy(bool),
    /// To take its DNS answers from elsewhere.
    SetResolver(Resolver),
    /// To end.
    Shutdown,
}

/// What a network replies.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Reply {
    /// It was done.
    Done,
    /// A guest was taken, with these addresses.
    Guest(GuestAddresses),
    /// A port is forwarded.
    Forward(ForwardInfo),
    /// The forwards.
    Forwards(Vec<ForwardInfo>),
    /// The guests.
    Guests(Vec<GuestInfo>),
    /// The flows.
    Flows(Vec<FlowInfo>),
    /// The allow-list, and whether it is incomplete because too much was seen.
    Learned(Policy, bool),
    /// It was not done.
    Refused(Refusal),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such guest.
    #[error("there is no guest named {0} on this network")]
    NoGuest(GuestName),
    /// There is no such forward.
    #[error("there is no such forward on this network")]
    NoForward,
    /// A setting is wrong.
    #[error("{0}")]
    Setting(String),
    /// A port is in use.
    #[error("{0} is in use by another program: choose another port, or 0 for a free one")]
    InUse(String),
    /// A port must not be used by this user.
    #[error("{0} must not be used by this user: choose a port from 1024 up")]
    NotPermitted(String),
    /// A port or socket cannot be listened on for another reason.
    #[error("cannot listen on {0}: {1}")]
    Listen(String, String),
    /// The request came without the descriptor that belongs to it.
    #[error("the request came without its descriptor")]
    NoDescriptor,
    /// The system refused something.
    #[error("{0}")]
    System(String),
}

impl From<ConfigError> for Refusal {
    fn from(error: ConfigError) -> Self {
        Self::Setting(error.to_string())
    }
}

/// What a network tells without being asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// A policy decided.
    Policy(PolicyEvent),
    /// The other side of a guest's frame socket is gone. The guest's place is kept until it is
    /// removed or added again.
    LinkClosed(GuestName),
    /// Something that a user should know.
    Notice(Notice),
    /// This many events were left out because they were not read.
    Lost(u64),
}

/// Something that a user should know. Each kind is told once a minute at most.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Notice {
    /// No descriptor is left for new flows.
    #[error(
        "the network has no file descriptor left for new connections: raise its limit (ulimit -n)"
    )]
    OutOfDescriptors,
    /// Ping is not possible.
    #[error(
        "guests cannot ping: let this user's group do so with sysctl net.ipv4.ping_group_range=\"0 2147483647\""
    )]
    NoPing,
    /// A guest has as many flows as it may.
    #[error("guest {0} has as many connections, or as much buffered, as it may: raise its limits")]
    FlowLimit(GuestName),
    /// No DNS server is known or answers.
    #[error("no DNS server of the host's answers: {0}")]
    NoDns(String),
    /// The capture ended by itself.
    #[error("the capture ended: {0}")]
    CaptureEnded(String),
}

/// A forward that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardInfo {
    /// By which it is removed.
    pub id: ForwardId,
    /// The guest.
    pub guest: GuestName,
    /// As it was asked for.
    pub forward: Forward,
    /// The address that clients use, its port chosen; `None` for a Unix socket.
    pub bound: Option<SocketAddr>,
}

/// A guest and what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// Its hardware address.
    pub mac: MacAddress,
    /// Its addresses.
    pub addresses: GuestAddresses,
    /// Whether its frame socket is connected.
    pub connected: bool,
    /// Open TCP flows, and UDP and ICMP flows.
    pub flows: (u32, u32),
    /// Bytes of buffers of its TCP flows.
    pub tcp_buffers: u64,
    /// What was counted.
    pub counters: GuestCounters,
}

/// What was counted since a guest came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCounters {
    /// The guest.
    pub guest: GuestName,
    /// Frames from the guest.
    pub frames_from: u64,
    /// Their bytes.
    pub bytes_from: u64,
    /// Frames to the guest.
    pub frames_to: u64,
    /// Their bytes.
    pub bytes_to: u64,
    /// Frames from the guest that were malformed.
    pub malformed: u64,
    /// Frames from the guest with a source address that is not its own.
    pub spoofed: u64,
    /// Frames to the guest that were dropped, by its link's conditions or because it did not read.
    pub dropped: u64,
    /// TCP flows begun.
    pub tcp_flows: u64,
    /// UDP and ICMP flows begun.
    pub datagram_flows: u64,
    /// Flows that a limit refused.
    pub refused_flows: u64,
    /// Flows and lookups that the policy denied.
    pub denied: u64,
    /// Lookups.
    pub lookups: u64,
    /// Lookups answered from the cache.
    pub cached_lookups: u64,
}

impl GuestCounters {
    pub(crate) const fn new(guest: GuestName) -> Self {
        Self {
            guest,
            frames_from: 0,
            bytes_from: 0,
            frames_to: 0,
            bytes_to: 0,
            malformed: 0,
            spoofed: 0,
            dropped: 0,
            tcp_flows: 0,
            datagram_flows: 0,
            refused_flows: 0,
            denied: 0,
            lookups: 0,
            cached_lookups: 0,
        }
    }
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowInfo {
    /// Its protocol.
    pub protocol: Protocol,
    /// Who started it.
    pub direction: Direction,
    /// The guest's end.
    pub guest: SocketAddr,
    /// The other end, as the guest sees it.
    pub remote: SocketAddr,
    /// Its state in a word.
    pub state: String,
    /// Bytes delivered to the guest.
    pub to_guest: u64,
    /// Bytes taken from the guest.
    pub from_guest: u64,
}

/// What goes to a network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ToNetwork {
    pub(crate) id: u64,
    /// Whether a descriptor belongs to it. One read may bring several requests and the descriptor
    /// of a later one.
    pub(crate) descriptor: bool,
    pub(crate) request: Request,
}

/// What comes from a network.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromNetwork {
    Reply(u64, Box<Reply>),
    Event(Event),
}
