//! A file or block device whose bytes are the disk's.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use super::{Backend, GrowError, grow};
use crate::guest_io::GuestIoVec;

/// Written again and again where a file system cannot make zeroes by itself.
static ZEROES: [u8; 1 << 16] = [0; 1 << 16];

/// A raw disk.
pub struct RawDisk {
    file: File,
    size: AtomicU64,
    read_only: bool,
}

impl RawDisk {
    /// A disk on an open file or block device.
    ///
    /// # Errors
    /// Its size cannot be told.
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        let size = AtomicU64::new(size_of(&file)?);
        Ok(Self {
            file,
            size,
            read_only,
        })
    }

    fn put_zeroes(&self, mut offset: u64, len: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let end = offset + len;
        while offset < end {
            let (chunk, _) = ZEROES.split_at((end - offset).min(ZEROES.len() as u64) as usize);
            self.file.write_all_at(chunk, offset)?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }
}

/// The end of the file, also of a block device, whose metadata does not tell.
fn size_of(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

fn cannot(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV
    )
}

impl Backend for RawDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, mut buffers: GuestIoVec<'_>, mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let count = buffers.read_at(&self.file, offset)?;
            if count == 0 {
                // The last sector of a file that does not end with one.
                buffers.fill_zeroes();
                return Ok(());
            }
            buffers.advance(count);
            offset += count as u64;
        }
        Ok(())
    }

    fn write(&self, mut buffers: GuestIoVec<'_>, mut offset: u64) -> io::Result<()> {
        while !buffers.is_empty() {
            let count = buffers.write_at(&self.file, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            buffers.advance(count);
            offset += count as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, offset, len) {
            Err(errno) if !cannot(errno) => Err(errno.into()),
            _ => Ok(()),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let ways = if unmap {
            &[punch, zero][..]
        } else {
            &[zero][..]
        };
        for &flags in ways {
            match fallocate(&self.file, flags, offset, len) {
                Ok(()) => return Ok(()),
                Err(errno) if cannot(errno) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.put_zeroes(offset, len)
    }

    fn refresh_size(&self) -> io::Result<u64> {
        let size = size_of(&self.file)?;
        self.size.store(size, Ordering::Release);
        Ok(size)
    }

    fn grow(&self, size: u64) -> Result<(), GrowError> {
        // Somebody else may have made the file larger, and what they wrote there must not be cut off.
        let present = size_of(&self.file)?.max(self.size());
        grow::check(self, present, size)?;
        if self.file.metadata()?.file_type().is_block_device() {
            return Err(GrowError::BlockDevice);
        }
        self.file.set_len(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }

    fn plain_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}
