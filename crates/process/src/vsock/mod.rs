//! The caller's side of a guest's socket device: who listens on which of the host's ports, and
//! streams to the guest's.
//!
//! The device runs in another process and opens nothing: a control socket carries who listens and
//! who calls, with the streams' descriptors beside. One task reads it, woken by the socket.

mod listener;
mod ports;
mod state;
#[cfg(test)]
mod tests;

pub use ports::VsockPorts;
