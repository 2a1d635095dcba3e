//! Messages to bytes and back.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use serde::{Serialize, de::DeserializeOwned};

use super::MAX_MESSAGE;
use crate::sys::receive_with_fds;

/// The most descriptors whose messages are still to come. A message takes one at most.
const MAX_PENDING: usize = 64;

/// A message behind its length.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_MESSAGE)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"))?;
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Puts messages together from what a stream delivers.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Decoder {
    /// Reads once from a non-blocking socket; false at its end.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` among them.
    pub(crate) fn read(&mut self, socket: BorrowedFd<'_>) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let mut fds = Vec::new();
        let read = receive_with_fds(socket, &mut buffer, &mut fds)?;
        self.bytes
            .extend_from_slice(buffer.get(..read).unwrap_or_default());
        self.fds.extend(fds);
        if self.fds.len() > MAX_PENDING {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "descriptors came that belong to nothing",
            ));
        }
        Ok(read > 0)
    }

    /// The next whole message.
    ///
    /// # Errors
    /// When what came is no message; the stream is of no use any more then.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let Some((prefix, rest)) = self.bytes.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_MESSAGE {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a message is too long",
            ));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = postcard::from_bytes(body)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        self.bytes.drain(..4 + length);
        Ok(Some(message))
    }

    /// The descriptor that came with the last message, which says that one did.
    pub(crate) fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }
}
