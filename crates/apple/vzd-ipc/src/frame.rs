//! Frames: four bytes of length (little endian, of the message alone), one byte with the number of
//! descriptors, the message.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message in bytes: a plan with a few hundred disks and shares.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The most descriptors beside one message.
pub const MAX_DESCRIPTORS: usize = 8;
/// The length of what stands before a message.
pub const HEADER_BYTES: usize = 5;

/// Why bytes are not a message, or a message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It is longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes is too long: {MAX_MESSAGE_BYTES} are the most")]
    TooLong(usize),
    /// It has more than [`MAX_DESCRIPTORS`] descriptors.
    #[error("{0} descriptors are too many for a message: {MAX_DESCRIPTORS} are the most")]
    TooManyDescriptors(usize),
    /// It is none of the messages of this protocol.
    #[error("a message cannot be read")]
    Malformed,
}

/// Encodes a frame that has `descriptors` descriptors beside it.
///
/// # Errors
/// [`FrameError::TooLong`] and [`FrameError::TooManyDescriptors`].
pub fn encode<T: Serialize>(message: &T, descriptors: usize) -> Result<Vec<u8>, FrameError> {
    let Ok(count @ 0..=MAX_DESCRIPTORS_BYTE) = u8::try_from(descriptors) else {
        return Err(FrameError::TooManyDescriptors(descriptors));
    };
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend(postcard::to_stdvec(message).map_err(|_| FrameError::Malformed)?);
    let length = frame.len() - HEADER_BYTES;
    if length > MAX_MESSAGE_BYTES {
        return Err(FrameError::TooLong(length));
    }
    let stated = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    frame[..4].copy_from_slice(&stated.to_le_bytes());
    frame[4] = count;
    Ok(frame)
}

const MAX_DESCRIPTORS_BYTE: u8 = MAX_DESCRIPTORS as u8;

/// Decodes a message.
///
/// # Errors
/// [`FrameError::Malformed`], for bytes left over too.
pub fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(message) {
        Ok((decoded, [])) => Ok(decoded),
        _ => Err(FrameError::Malformed),
    }
}

/// Takes frames out of a stream of bytes that comes in pieces.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    bytes: Vec<u8>,
}

impl FrameDecoder {
    /// Adds what came in.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether everything that came in was taken out.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next whole message with its number of descriptors; `None` where more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] and [`FrameError::TooManyDescriptors`], as soon as the header tells:
    /// nothing more can be read from such a peer.
    pub fn next_message(&mut self) -> Result<Option<(Vec<u8>, usize)>, FrameError> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, count] = *header;
        let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let count = usize::from(count);
        if count > MAX_DESCRIPTORS {
            return Err(FrameError::TooManyDescriptors(count));
        }
        let Some(message) = rest.get(..length) else {
            return Ok(None);
        };
        let message = message.to_vec();
        self.bytes.drain(..HEADER_BYTES + length);
        Ok(Some((message, count)))
    }
}
