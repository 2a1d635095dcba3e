//! The file system device (§5.11): a host directory for the guest, by the FUSE protocol.
//!
//! The guest is not trusted. Whatever it does stays below the shared directory, because nothing here ever resolves a path:
//! a node is an open descriptor, reached from its parent's descriptor by one checked name without following links, and
//! numbers that were not given out name nothing. Host and guest may rename and replace what they like meanwhile.
//!
//! FUSE: the protocol of `include/uapi/linux/fuse.h`, version 7.38.

mod abi;
mod body;
mod config;
mod device;
mod handles;
mod metrics;
mod nodes;
mod ops;
mod owners;
mod queue;
mod server;
mod state;
#[cfg(test)]
mod tests;

pub use self::config::{CachePolicy, FileId, Filter, FsError, FsOptions, Owners};
pub use self::device::Fs;
pub use self::metrics::FsMetrics;
pub use self::server::keep_descriptors_in_reach;
pub use self::state::FsState;
