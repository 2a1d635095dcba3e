//! The network's own DNS: a forwarder to the host's servers that knows the network's names,
//! asks the guest's policy about each lookup and remembers which addresses it gave out.

pub(crate) mod cache;
pub(crate) mod exchange;
pub(crate) mod forwarder;
pub(crate) mod message;
pub(crate) mod names;
pub(crate) mod servers;
