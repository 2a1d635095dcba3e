//! Frames: one byte that says what they hold, four bytes of length (little-endian), the content.

use std::ops::Range;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ProtocolError;

/// Length of a frame's head in bytes.
pub const HEAD_BYTES: usize = 5;
/// The longest content of a data frame, in bytes.
pub const MAX_DATA_BYTES: usize = 64 << 10;
/// The longest message in bytes. It holds what a command is started with, and bounds what a peer
/// makes the other side keep.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The longest message that an agent sends, in bytes: it is the side that is not trusted.
pub const MAX_REPLY_BYTES: usize = 128 << 10;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A postcard-encoded message; which one depends on where in a connection it comes.
    Message = 1,
    /// Bytes of the stream that the connection is for: standard input, standard output, a file.
    Data = 2,
    /// Bytes of standard error.
    ErrorData = 3,
    /// The end of the stream that the sender sends. It has no content.
    End = 4,
}

impl Kind {
    const fn limit(self) -> usize {
        match self {
            Self::Message => MAX_MESSAGE_BYTES,
            Self::Data | Self::ErrorData => MAX_DATA_BYTES,
            Self::End => 0,
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the frame holds.
    pub kind: Kind,
    /// Length of the content in bytes, within the limit of the kind.
    pub length: usize,
}

impl Head {
    /// Decodes it.
    ///
    /// # Errors
    /// [`ProtocolError::UnknownKind`] and [`ProtocolError::TooLong`].
    pub fn decode([kind, length @ ..]: [u8; HEAD_BYTES]) -> Result<Self, ProtocolError> {
        let kind = match kind {
            1 => Kind::Message,
            2 => Kind::Data,
            3 => Kind::ErrorData,
            4 => Kind::End,
            other => return Err(ProtocolError::UnknownKind(other)),
        };
        let length = u32::from_le_bytes(length);
        match usize::try_from(length) {
            Ok(length) if length <= kind.limit() => Ok(Self { kind, length }),
            _ => Err(ProtocolError::TooLong(length.into())),
        }
    }

    /// Encodes it. A length beyond the limit is the caller's mistake, and refused by the receiver.
    pub fn encode(self) -> [u8; HEAD_BYTES] {
        let [a, b, c, d] = u32::try_from(self.length).unwrap_or(u32::MAX).to_le_bytes();
        [self.kind as u8, a, b, c, d]
    }
}

/// Encodes a whole frame.
pub fn frame(kind: Kind, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut frame = Vec::with_capacity(HEAD_BYTES + length);
    frame.extend_from_slice(&Head { kind, length }.encode());
    frame.extend_from_slice(content);
    frame
}

/// Encodes `message` as a whole frame.
///
/// # Errors
/// [`ProtocolError::TooLong`].
pub fn message<T: Serialize>(message: &T) -> Result<Vec<u8>, ProtocolError> {
    let mut frame =
        postcard::to_extend(message, vec![0; HEAD_BYTES]).map_err(|_| ProtocolError::Malformed)?;
    let length = frame.len().saturating_sub(HEAD_BYTES);
    if length > MAX_MESSAGE_BYTES {
        return Err(ProtocolError::TooLong(length as u64));
    }
    let kind = Kind::Message;
    if let Some(head) = frame.first_chunk_mut() {
        *head = Head { kind, length }.encode();
    }
    Ok(frame)
}

/// Decodes the content of a message frame.
///
/// # Errors
/// [`ProtocolError::Malformed`], for bytes left over too.
pub fn decode<T: DeserializeOwned>(content: &[u8]) -> Result<T, ProtocolError> {
    match postcard::take_from_bytes(content) {
        Ok((message, [])) => Ok(message),
        _ => Err(ProtocolError::Malformed),
    }
}

/// Takes frames out of bytes that come in pieces. It never holds more than one frame and what its
/// user pushed last.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    message_limit: usize,
}

impl FrameBuffer {
    /// For what the host sends.
    pub const fn of_host() -> Self {
        Self::with_limit(MAX_MESSAGE_BYTES)
    }

    /// For what an agent sends.
    pub const fn of_agent() -> Self {
        Self::with_limit(MAX_REPLY_BYTES)
    }

    const fn with_limit(message_limit: usize) -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            message_limit,
        }
    }

    /// Adds what came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if all of it is there.
    ///
    /// # Errors
    /// As [`Head::decode`]; nothing that comes later can be read then.
    pub fn next_frame(&mut self) -> Result<Option<(Kind, &[u8])>, ProtocolError> {
        let Some((kind, content)) = self.range()? else {
            return Ok(None);
        };
        self.start = content.end;
        Ok(self.bytes.get(content).map(|content| (kind, content)))
    }

    /// Where the next frame's content is, if all of it is there.
    fn range(&self) -> Result<Option<(Kind, Range<usize>)>, ProtocolError> {
        let ready = self.bytes.get(self.start..).unwrap_or_default();
        let Some((head, content)) = ready.split_first_chunk() else {
            return Ok(None);
        };
        let Head { kind, length } = Head::decode(*head)?;
        if length > self.message_limit {
            return Err(ProtocolError::TooLong(length as u64));
        }
        let from = self.start + HEAD_BYTES;
        Ok((content.len() >= length).then_some((kind, from..from + length)))
    }

    /// Whether all of the next frame is there.
    ///
    /// # Errors
    /// As [`next_frame`](Self::next_frame).
    pub fn has_frame(&self) -> Result<bool, ProtocolError> {
        Ok(self.range()?.is_some())
    }

    /// What came and is not yet taken, for a connection that goes on without frames.
    pub fn into_rest(mut self) -> Vec<u8> {
        self.bytes.drain(..self.start);
        self.bytes
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_in_single_bytes_come_out_whole() {
        let mut bytes = frame(Kind::Data, b"abc");
        bytes.extend(frame(Kind::End, b""));
        let mut buffer = FrameBuffer::of_host();
        let mut found = Vec::new();

        for byte in bytes {
            buffer.push(&[byte]);
            while let Some((kind, content)) = buffer.next_frame().unwrap() {
                found.push((kind, content.to_vec()));
            }
        }

        assert_eq!(
            found,
            [(Kind::Data, b"abc".to_vec()), (Kind::End, Vec::new())]
        );
        assert!(buffer.is_empty());
    }

    #[test]
    fn frame_beyond_its_limit_is_refused_by_its_head() {
        let mut buffer = FrameBuffer::of_host();
        buffer.push(&[Kind::Data as u8, 1, 0, 1, 0]);
        assert_eq!(buffer.next_frame(), Err(ProtocolError::TooLong(65537)));
    }

    #[test]
    fn end_with_content_is_refused() {
        assert_eq!(
            Head::decode([4, 1, 0, 0, 0]),
            Err(ProtocolError::TooLong(1))
        );
    }

    #[test]
    fn unknown_kind_is_refused() {
        assert_eq!(
            Head::decode([9, 0, 0, 0, 0]),
            Err(ProtocolError::UnknownKind(9))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_give_frames_or_fail_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut buffer = FrameBuffer::of_host();
            buffer.push(&bytes);
            while let Ok(Some(_)) = buffer.next_frame() {}
        }
    }
}
