//! What the gateway itself answers: address resolution, address assignment, router discovery.

pub(crate) mod arp;
pub(crate) mod dhcp;
pub(crate) mod ndp;
