//! The block device (§5.2), in two halves: the front end reads requests from the queues, a [`Backend`] carries them out.
//!
//! ```text
//! queues ── requests.rs ── engine/ (io_uring, or threads) ── backend/ (raw file, image with copy-on-write layers)
//! ```
//! Files are opened by [`image::DiskSource::open`], which may run in another process: a
//! [`backend`] takes descriptors only.

pub mod backend;
mod config;
mod device;
pub mod engine;
pub mod image;
mod metrics;
mod request;
mod requests;
mod state;
#[cfg(test)]
mod tests;

pub use self::backend::{Backend, GrowError};
pub use self::device::{Block, BlockError, BlockHandle, BlockOptions};
pub use self::engine::EngineKind;
pub use self::metrics::BlockMetrics;
pub use self::request::{ParsedRequest, Request, Status, parse};
pub use self::state::BlockState;

/// Bytes of a sector, the unit of the protocol (§5.2.4).
pub const SECTOR: u64 = 512;
