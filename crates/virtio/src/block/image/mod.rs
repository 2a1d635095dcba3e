//! Opening disk images: what format they have, what lies under them, and that nobody else writes them.
//!
//! [`DiskSource::open`] does all that needs paths. Its result is a stack of open files, which can be handed to a process
//! that opens nothing ([`OpenDisk::into_parts`]), and becomes a [`Backend`] there.

mod error;
mod lock;
mod open;
mod overlay;
mod probe;
mod qcow2_header;
mod stack;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::error::ImageError;
pub use self::probe::{ImageFormat, probe};
pub use self::qcow2_header::Qcow2Header;
pub use self::stack::{LayerPlan, OpenDisk};

#[allow(unused_imports, reason = "for the links above")]
use super::Backend;

/// A disk as the user names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSource {
    /// An image file or a block device.
    pub path: PathBuf,
    /// Its format. `None`: found out from the content, never from the name. State it where a guest can write a raw
    /// image: it could make it look like another format.
    pub format: Option<ImageFormat>,
    /// What the guest may do with it.
    pub access: DiskAccess,
    /// Whether a qcow2 image may bring in the file that it names as its backing file. That name can be anything on this
    /// host, so allow it only for images that you trust.
    pub allow_backing: bool,
}

/// What a guest may do with a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskAccess {
    /// Only read. Several VMs may use the image like this at once.
    ReadOnly,
    /// Read and write. Nobody else may use the image meanwhile.
    ReadWrite,
    /// Write, but into a layer of its own; the image itself is never written. Several VMs may use it like this at once.
    Overlay(Overlay),
}

/// Where the layer of an overlay is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Overlay {
    /// In a nameless file in this directory (`None`: `/var/tmp`), gone with the VM.
    Temporary(Option<PathBuf>),
    /// In this qcow2 file, made if it is missing. It belongs to this base image for ever.
    Kept(PathBuf),
}
