//! What carries requests out.

mod grow;
mod image;
mod raw;

use std::io;
use std::os::fd::BorrowedFd;

pub use self::grow::GrowError;
pub use self::image::ImageDisk;
pub use self::raw::RawDisk;
use super::request::{Range, Request};
use crate::guest_io::GuestIoVec;
use crate::{GuestRam, Segment};

/// The content of a disk. Calls block, and come from several threads at once.
///
/// The front end has checked that offsets and lengths are whole sectors inside [`size`](Self::size) rounded up to them.
/// An error fails the one request that it belongs to.
pub trait Backend: Send + Sync {
    /// Bytes of the disk.
    fn size(&self) -> u64;

    /// Whether nothing can be written.
    fn is_read_only(&self) -> bool;

    /// Fills all of `buffers`.
    ///
    /// # Errors
    /// What the host said.
    fn read(&self, buffers: GuestIoVec<'_>, offset: u64) -> io::Result<()>;

    /// Stores all of `buffers`.
    ///
    /// # Errors
    /// What the host said.
    fn write(&self, buffers: GuestIoVec<'_>, offset: u64) -> io::Result<()>;

    /// Makes all completed writes durable: it returns after the host's storage has said so.
    ///
    /// # Errors
    /// What the host said; completed writes may be lost then.
    fn flush(&self) -> io::Result<()>;

    /// Gives space back. What is read there afterwards is not defined.
    ///
    /// # Errors
    /// What the host said. A file system that cannot is no error.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Fills with zeroes, giving space back if `unmap`.
    ///
    /// # Errors
    /// What the host said.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// Looks whether somebody else has changed the size. Returns the present one in bytes.
    ///
    /// # Errors
    /// What the host said.
    fn refresh_size(&self) -> io::Result<u64>;

    /// Makes the disk larger: `size` bytes, a multiple of 512. What is new reads as zeroes.
    ///
    /// # Errors
    /// [`GrowError`].
    fn grow(&self, size: u64) -> Result<(), GrowError>;

    /// Writes down what is only in this process's memory, without waiting for the storage.
    ///
    /// # Errors
    /// What the host said.
    fn settle(&self) -> io::Result<()> {
        Ok(())
    }

    /// The file that io_uring may read and write at the disk's own offsets, if there is one.
    fn plain_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Carries `request` out, and a flush after a write if `write_through`.
pub(super) fn perform(
    backend: &dyn Backend,
    request: &Request,
    ram: &GuestRam,
    write_through: bool,
) -> io::Result<()> {
    match request {
        Request::Read { offset, data } => backend.read(buffers(ram, data)?, *offset),
        Request::Write { offset, data } => {
            backend.write(buffers(ram, data)?, *offset)?;
            after_write(backend, write_through)
        }
        Request::Flush => backend.flush(),
        Request::Discard(ranges) => ranges
            .iter()
            .try_for_each(|range| backend.discard(range.offset, range.len)),
        Request::WriteZeroes(ranges) => {
            for &Range { offset, len, unmap } in ranges {
                backend.write_zeroes(offset, len, unmap)?;
            }
            after_write(backend, write_through)
        }
        // The front end answers it by itself.
        Request::GetId { .. } => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn after_write(backend: &dyn Backend, write_through: bool) -> io::Result<()> {
    if write_through {
        backend.flush()
    } else {
        Ok(())
    }
}

fn buffers<'m>(ram: &'m GuestRam, data: &[Segment]) -> io::Result<GuestIoVec<'m>> {
    GuestIoVec::new(ram, data.iter().copied()).map_err(io::Error::other)
}
