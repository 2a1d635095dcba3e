//! What every disk checks before it grows.

use std::io;

use super::Backend;
use crate::block::SECTOR;

/// Why a disk did not grow. The guest sees it as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrowError {
    /// Nothing of it can be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A disk cannot shrink.
    #[error("the disk has {0} bytes, and a disk cannot shrink")]
    Smaller(u64),
    /// The size is not one of whole sectors.
    #[error("{0} bytes are no whole number of sectors of 512")]
    NotSectors(u64),
    /// Its size is that of a device of the host.
    #[error("the disk is a block device of the host, which grows by the host's own tools")]
    BlockDevice,
    /// What the host said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checks that `disk`, which now has `present` bytes, may grow to `size`.
pub(super) fn check(disk: &dyn Backend, present: u64, size: u64) -> Result<(), GrowError> {
    if disk.is_read_only() {
        return Err(GrowError::ReadOnly);
    }
    if !size.is_multiple_of(SECTOR) {
        return Err(GrowError::NotSectors(size));
    }
    if size < present {
        return Err(GrowError::Smaller(present));
    }
    Ok(())
}
