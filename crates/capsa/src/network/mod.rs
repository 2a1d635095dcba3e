//! Networks: a VM's interface, networks of several VMs, and what steers them while they run.
//!
//! What a guest may reach is decided in the network's own process, never in the one that runs the
//! guest. See `docs/network.md` for what a guest sees.

mod connection;
mod error;
mod events;
mod guest_settings;
mod interface;
#[cfg(target_os = "linux")]
mod kept;
#[cfg(target_os = "linux")]
mod plan;
#[cfg(target_os = "linux")]
mod relay;
mod shared;
mod supervise;
mod vm_network;

pub(crate) use connection::Connection;
pub use events::{NetworkEvent, NetworkEvents, PolicyEvents};
pub use interface::Interface;
#[cfg(target_os = "linux")]
pub use kept::{NetworkInfo, NetworkState};
#[cfg(target_os = "linux")]
pub(crate) use plan::{InterfacePlan, VmNetworkFacts};
#[cfg(target_os = "linux")]
pub(crate) use relay::{Scope, relay};
pub use shared::{Network, NetworkBuilder, OnLoss};
pub use vm_network::VmNetwork;

pub use capsa_net::{
    Action, AddressScope, Cidr, CidrError, Direction, DomainPattern, FlowInfo, Forward, ForwardId,
    ForwardInfo, ForwardProtocol, GuestAddresses, GuestCounters, GuestInfo, GuestName, Limits,
    LinkConditions, Listen, Notice, Policy, PolicyEvent, PortRange, Protocol, Reason, Resolver,
    Rule, Subject, Target,
};
