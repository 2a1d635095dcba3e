//! Reading a request's fields and names.

use std::ffi::CStr;

use rustix::io::Errno;

use super::abi::{IN_HEADER, InHeader};

/// Longest name of a file.
const NAME_MAX: usize = 255;

/// What is left of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body<'b>(pub(super) &'b [u8]);

impl<'b> Body<'b> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'b [u8], Errno> {
        let (field, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(field)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Errno> {
        let field = self.take(4)?.first_chunk().ok_or(Errno::INVAL)?;
        Ok(u32::from_le_bytes(*field))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Errno> {
        let field = self.take(8)?.first_chunk().ok_or(Errno::INVAL)?;
        Ok(u64::from_le_bytes(*field))
    }

    /// A string that ends with NUL.
    pub(super) fn string(&mut self) -> Result<&'b CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.take(string.count_bytes() + 1)?;
        Ok(string)
    }

    /// The name of an entry: exactly one step down, never up, never further.
    pub(super) fn name(&mut self) -> Result<&'b CStr, Errno> {
        let name = self.string()?;
        match name.to_bytes() {
            b"" => Err(Errno::NOENT),
            b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }
}

impl InHeader {
    pub(super) fn from_bytes(bytes: &[u8; IN_HEADER]) -> Option<Self> {
        let mut body = Body(bytes);
        Some(Self {
            len: body.u32().ok()?,
            opcode: body.u32().ok()?,
            unique: body.u64().ok()?,
            node: body.u64().ok()?,
            uid: body.u32().ok()?,
            gid: body.u32().ok()?,
        })
    }
}
