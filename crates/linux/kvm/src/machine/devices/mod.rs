//! What a machine has beside virtio: the few devices of a PC that kernels cannot do without.

pub mod bus;
pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod serial;
mod uart;
