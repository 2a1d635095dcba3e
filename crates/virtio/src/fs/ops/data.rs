//! Reading and writing.

use std::io;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use crate::fs::abi::{MAX_DATA, WRITE_KILL_SUIDGID};
use crate::fs::metrics::count;
use crate::fs::server::{Reply, Request, Result, Server};
use crate::guest_io::GuestIoVec;

fn errno(error: &io::Error) -> Errno {
    let unsaid = match error.kind() {
        io::ErrorKind::InvalidInput => Errno::INVAL,
        _ => Errno::IO,
    };
    Errno::from_io_error(error).unwrap_or(unsaid)
}

fn write_out(count: u64) -> Reply {
    Reply::Data(count.min(u64::from(u32::MAX)).to_le_bytes().to_vec())
}

impl Server {
    pub(crate) fn read(&self, mut request: Request<'_>) -> Result<Reply> {
        let (handle, offset) = (request.body.u64()?, request.body.u64()?);
        let size = request.body.u32()?.min(MAX_DATA);
        let handle = self.handle(handle, &request)?;
        let segments = request.room.segments(u64::from(size));
        let mut buffers = GuestIoVec::new(request.ram, segments).map_err(|_| Errno::FAULT)?;
        let mut all = 0;
        while !buffers.is_empty() {
            let at = offset.checked_add(all).ok_or(Errno::INVAL)?;
            match buffers.read_at(&handle.file, at) {
                Ok(0) => break,
                Ok(read) => {
                    all += read as u64;
                    buffers.advance(read);
                }
                Err(error) if all == 0 => return Err(errno(&error)),
                Err(_) => break,
            }
        }
        count(&self.metrics.read, all);
        Ok(Reply::Placed(all as u32))
    }

    pub(crate) fn write(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let (handle, offset) = (request.body.u64()?, request.body.u64()?);
        let (size, flags) = (request.body.u32()?, request.body.u32()?);
        let handle = self.handle(handle, &request)?;
        if u64::from(size) > request.data.remaining() || size > MAX_DATA {
            return Err(Errno::INVAL);
        }
        if flags & WRITE_KILL_SUIDGID != 0 {
            self.drop_set_ids(&*self.node(&request)?)?;
        }
        let segments = request.data.segments(u64::from(size));
        let mut buffers = GuestIoVec::new(request.ram, segments).map_err(|_| Errno::FAULT)?;
        let mut all = 0;
        while !buffers.is_empty() {
            let at = offset.checked_add(all).ok_or(Errno::FBIG)?;
            match buffers.write_at(&handle.file, at) {
                Ok(0) => break,
                Ok(written) => {
                    all += written as u64;
                    buffers.advance(written);
                }
                Err(error) if all == 0 => return Err(errno(&error)),
                Err(_) => break,
            }
        }
        count(&self.metrics.written, all);
        Ok(write_out(all))
    }

    pub(crate) fn fallocate(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let (handle, offset) = (request.body.u64()?, request.body.u64()?);
        let (len, mode) = (request.body.u64()?, request.body.u32()?);
        let handle = self.handle(handle, &request)?;
        let known =
            FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE | FallocateFlags::ZERO_RANGE;
        let mode = FallocateFlags::from_bits(mode).filter(|&mode| known.contains(mode));
        rustix::fs::fallocate(&handle.file, mode.ok_or(Errno::OPNOTSUPP)?, offset, len)?;
        Ok(Reply::Data(Vec::new()))
    }

    pub(crate) fn lseek(&self, mut request: Request<'_>) -> Result<Reply> {
        let (handle, offset) = (request.body.u64()?, request.body.u64()?);
        let whence = request.body.u32()?;
        let handle = self.handle(handle, &request)?;
        // All others the guest does by itself.
        let to = match i32::try_from(whence) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let found = rustix::fs::seek(&handle.file, to)?;
        Ok(Reply::Data(found.to_le_bytes().to_vec()))
    }

    pub(crate) fn copy_file_range(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let body = &mut request.body;
        let (handle_in, mut offset_in) = (body.u64()?, body.u64()?);
        let (node_out, handle_out) = (body.u64()?, body.u64()?);
        let (mut offset_out, len, flags) = (body.u64()?, body.u64()?, body.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let from = self.handle(handle_in, &request)?;
        let to = self.handles.get(handle_out, node_out)?;
        // One call's worth, so that nobody waits long; the guest asks again for the rest.
        let len = usize::try_from(len.min(64 << 20)).map_err(|_| Errno::INVAL)?;
        let copied = rustix::fs::copy_file_range(
            &from.file,
            Some(&mut offset_in),
            &to.file,
            Some(&mut offset_out),
            len,
        )?;
        count(&self.metrics.written, copied as u64);
        Ok(write_out(copied as u64))
    }
}
