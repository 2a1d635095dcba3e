//! Messages between a keeper and those who talk to it: a length in four bytes, little end
//! first, and postcard's encoding.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message in bytes: whoever sends more is not answered. A sandbox's settings, with the
/// environment of its commands, are the longest.
const MAX_BYTES: u32 = 4 << 20;

/// Sends one message.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] where it is too long, or the operating system's error.
pub(crate) async fn send(
    to: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let text = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(text.len())
        .ok()
        .filter(|length| *length <= MAX_BYTES)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a message of {} bytes is too long: {MAX_BYTES} are the most",
                    text.len()
                ),
            )
        })?;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend_from_slice(&text);
    to.write_all(&frame).await?;
    to.flush().await
}

/// Receives one message; `None` where the other side is gone. Reads nothing beyond it.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] where it cannot be understood, or the operating system's error.
pub(crate) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message of {length} bytes came in"),
        ));
    }
    // Grows with what comes, not with what is announced.
    let mut text = Vec::new();
    from.take(u64::from(length)).read_to_end(&mut text).await?;
    if text.len() != usize::try_from(length).unwrap_or(usize::MAX) {
        return Ok(None);
    }
    postcard::from_bytes(&text)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn message_arrives_and_what_follows_is_left() {
        let mut stream = Vec::new();
        send(&mut stream, &"hello").await.unwrap();
        stream.extend_from_slice(b"rest");
        let mut from = stream.as_slice();

        let received: Option<String> = receive(&mut from).await.unwrap();

        assert_eq!(received.as_deref(), Some("hello"));
        assert_eq!(from, b"rest");
    }

    #[tokio::test]
    async fn length_beyond_the_limit_is_refused_before_anything_is_read() {
        let mut from = [0xff_u8; 8].as_slice();

        let received: io::Result<Option<String>> = receive(&mut from).await;

        assert_eq!(received.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn half_a_message_is_the_end() {
        for bytes in [&[][..], &[1, 0], &[5, 0, 0, 0, 4]] {
            let mut from = bytes;
            let received: Option<String> = receive(&mut from).await.unwrap();
            assert_eq!(received, None);
        }
    }
}
