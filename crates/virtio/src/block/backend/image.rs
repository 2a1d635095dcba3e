//! A disk in an image format, with the images that lie under it. The formats are imago's.

use std::io;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::FormatAccess;
use imago::file::File;
use imago::format::PreallocateMode;
use imago::io_buffers::{IoVector, IoVectorMut};

use super::{Backend, GrowError, grow};
use crate::guest_io::GuestIoVec;

/// A disk in a chain of images, of which only the uppermost is ever written.
pub struct ImageDisk {
    /// Discards may break what a concurrent access has looked up, so they are alone.
    image: RwLock<FormatAccess<File>>,
    read_only: bool,
}

impl ImageDisk {
    /// A disk on an open image.
    pub fn new(image: FormatAccess<File>, read_only: bool) -> Self {
        Self {
            image: RwLock::new(image),
            read_only,
        }
    }

    fn shared(&self) -> RwLockReadGuard<'_, FormatAccess<File>> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, FormatAccess<File>> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of `len` bytes is inside an image of `size`: its last sector may be cut off.
fn inside(size: u64, offset: u64, len: u64) -> u64 {
    len.min(size.saturating_sub(offset))
}

impl Backend for ImageDisk {
    fn size(&self) -> u64 {
        self.shared().size()
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, buffers: GuestIoVec<'_>, offset: u64) -> io::Result<()> {
        // imago reads zeroes beyond the end.
        let (vector, _mapped) = IoVectorMut::from_volatile_slice(buffers.slices());
        self.shared().readv(vector, offset)
    }

    fn write(&self, buffers: GuestIoVec<'_>, offset: u64) -> io::Result<()> {
        let image = self.shared();
        let (mut vector, _mapped) = IoVector::from_volatile_slice(buffers.slices());
        let len = inside(image.size(), offset, vector.len());
        if len < vector.len() {
            vector = vector.split_at(len).0;
        }
        image.writev(vector, offset)
    }

    fn flush(&self) -> io::Result<()> {
        let image = self.shared();
        image.flush()?;
        image.sync()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut image = self.alone();
        let len = inside(image.size(), offset, len);
        // Not "to any" content: what lies under it must not show through again.
        match image.discard_to_zero(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap {
            let mut image = self.alone();
            let len = inside(image.size(), offset, len);
            match image.discard_to_zero(offset, len) {
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {}
                result => return result,
            }
        }
        let image = self.shared();
        let len = inside(image.size(), offset, len);
        image.write_zeroes(offset, len)
    }

    fn refresh_size(&self) -> io::Result<u64> {
        // Nobody else may change an image whose tables this process has in its memory.
        Ok(self.size())
    }

    fn grow(&self, size: u64) -> Result<(), GrowError> {
        let image = self.alone();
        grow::check(self, image.size(), size)?;
        image.resize_grow(size, PreallocateMode::None)?;
        Ok(image.flush()?)
    }

    fn settle(&self) -> io::Result<()> {
        self.shared().flush()
    }
}

impl Drop for ImageDisk {
    fn drop(&mut self) {
        if self.read_only {
            return;
        }
        if let Err(error) = self.settle() {
            tracing::error!(%error, "a disk image could not be written down; its last unflushed writes are lost");
        }
    }
}
