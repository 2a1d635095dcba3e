//! From a guest's packets to the host's sockets and back.

pub(crate) mod datagram;
pub(crate) mod dns_stream;
pub(crate) mod stack;
pub(crate) mod tcp;
pub(crate) mod transfer;
pub(crate) mod turn;
