//! Extended attributes.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::fs::server::{Reply, Request, Result, Server};

/// Linux's limits of a value and of a list of names.
const MAX_VALUE: usize = 64 << 10;
const MAX_NAME: usize = 255;

impl Server {
    /// A descriptor that attributes can be reached by. Links and devices have none that would be the guest's.
    fn open_for_xattr(&self, request: &Request<'_>) -> Result<OwnedFd> {
        let node = self.node(request)?;
        match node.kind {
            FileType::RegularFile | FileType::Directory => self.open_node(&node, OFlags::RDONLY),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    /// Attributes other than the user's mean something to the host.
    fn check_name<'n>(&self, name: &'n CStr) -> Result<&'n CStr> {
        let bytes = name.to_bytes();
        if bytes.is_empty() || bytes.len() > MAX_NAME {
            return Err(Errno::RANGE);
        }
        if bytes.starts_with(b"user.") || self.owners.is_privileged() {
            return Ok(name);
        }
        Err(Errno::OPNOTSUPP)
    }

    pub(crate) fn getxattr(&self, mut request: Request<'_>) -> Result<Reply> {
        let (size, _) = (request.body.u32()?, request.body.u32()?);
        let name = self.check_name(request.body.string()?)?;
        let file = self.open_for_xattr(&request)?;
        let mut value = vec![0; MAX_VALUE];
        let len = rustix::fs::fgetxattr(&file, name, &mut value)?;
        value.truncate(len);
        sized(value, size)
    }

    pub(crate) fn listxattr(&self, mut request: Request<'_>) -> Result<Reply> {
        let size = request.body.u32()?;
        let file = self.open_for_xattr(&request)?;
        let mut names = vec![0; MAX_VALUE];
        let len = rustix::fs::flistxattr(&file, &mut names)?;
        names.truncate(len);
        let mut shown = Vec::new();
        for name in names.split_inclusive(|&byte| byte == 0) {
            if self.owners.is_privileged() || name.starts_with(b"user.") {
                shown.extend(name);
            }
        }
        sized(shown, size)
    }

    pub(crate) fn setxattr(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let (size, flags) = (request.body.u32()? as usize, request.body.u32()?);
        let name = self.check_name(request.body.string()?)?;
        let value = request.body.take(size)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let file = self.open_for_xattr(&request)?;
        rustix::fs::fsetxattr(&file, name, value, flags)?;
        Ok(Reply::Data(Vec::new()))
    }

    pub(crate) fn removexattr(&self, mut request: Request<'_>) -> Result<Reply> {
        self.check_writable()?;
        let name = self.check_name(request.body.string()?)?;
        let file = self.open_for_xattr(&request)?;
        rustix::fs::fremovexattr(&file, name)?;
        Ok(Reply::Data(Vec::new()))
    }
}

/// The value, or its size if the guest asks for just that.
fn sized(value: Vec<u8>, size: u32) -> Result<Reply> {
    if size == 0 {
        return Ok(Reply::Data((value.len() as u64).to_le_bytes().to_vec()));
    }
    if value.len() > size as usize {
        return Err(Errno::RANGE);
    }
    Ok(Reply::Data(value))
}
