//! The virtio-mmio transport, version 2 (§4.2).

mod interrupt;
mod registers;
mod state;
#[cfg(test)]
mod tests;
mod transport;

pub use self::registers::REGION_SIZE;
pub use self::state::MmioState;
pub use self::transport::{MmioRestoreError, MmioTransport};
