//! User-mode network: Ethernet frames in, host sockets out.
//!
//! A network is plain data, a [`NetworkConfig`] with a [`Policy`] for each guest, which is built and
//! checked on any platform. The engine (on Unix) runs it: a single thread that takes the guests'
//! frames from sockets and carries what is in them over ordinary sockets of the host, without any
//! privilege. `docs/network.md` describes it from a user's side.

mod addr;
#[cfg(any(unix, test))]
mod bytes;
#[cfg(unix)]
mod capture;
mod config;
mod control;
#[cfg(unix)]
mod dns;
#[cfg(unix)]
mod engine;
#[cfg(unix)]
mod forward;
#[cfg(all(target_os = "linux", any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(unix)]
mod link;
#[cfg(unix)]
mod nat;
mod policy;
#[cfg(unix)]
mod services;
#[cfg(unix)]
mod sys;
#[cfg(unix)]
mod wire;

pub use addr::{AddressScope, Cidr, CidrError};
pub use config::{
    ConfigError, ConfigWarning, Forward, ForwardProtocol, FrameFormat, GuestAddresses, GuestConfig,
    GuestName, INTERNAL_DOMAIN, Limits, LinkConditions, Listen, MAX_MTU, NetworkConfig, Resolver,
    overlapping,
};
pub use policy::{
    Action, Attempt, Direction, DomainPattern, DomainPatternError, LearnedFlows, Policy,
    PolicyError, PolicyEvent, PolicyWarning, PortRange, Protocol, Reason, Rule, RuleSyntaxError,
    Subject, Target, Verdict,
};

#[cfg(unix)]
pub use control::{ControlClient, ControlError, ControlRequest, ControlServer};
pub use control::{
    Event, FlowInfo, ForwardId, ForwardInfo, GuestCounters, GuestInfo, MAX_MESSAGE, Notice,
    Refusal, Reply, Request,
};
#[cfg(unix)]
pub use engine::{Engine, StartError};
#[cfg(unix)]
pub use link::{Offloads, offer_offloads};
