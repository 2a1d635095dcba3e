//! Sends what a person types to the guest's console.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Ctrl-]: the key that leaves a virtual machine.
const LEAVE: u8 = 0x1d;
/// How much of what was typed is kept while the guest takes nothing.
const TYPED_AHEAD: usize = 64 * 1024;

/// Why no more keys come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Ctrl-] was typed.
    Left,
    /// The terminal is gone.
    Closed,
}

/// Sends keys until there are no more. Ctrl-] is heard even when the guest takes nothing; what is
/// typed beyond a bound is then lost, as on any terminal.
pub(super) async fn send_keys(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
) -> io::Result<Ended> {
    let mut typed = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            read = from.read(&mut buffer) => {
                let keys = buffer.get(..read?).unwrap_or_default();
                if keys.is_empty() {
                    return Ok(Ended::Closed);
                }
                if keys.contains(&LEAVE) {
                    return Ok(Ended::Left);
                }
                let room = TYPED_AHEAD.saturating_sub(typed.len()).min(keys.len());
                typed.extend_from_slice(keys.get(..room).unwrap_or_default());
            }
            written = to.write(&typed), if !typed.is_empty() => {
                let count = written?.min(typed.len());
                typed.drain(..count);
                if typed.is_empty() {
                    to.flush().await?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_reach_the_guest_until_ctrl_bracket() {
        let (mut person, terminal) = tokio::io::duplex(64);
        let (console, mut guest) = tokio::io::duplex(64);
        let session = tokio::spawn(send_keys(terminal, console));
        person.write_all(b"ls\r\x03").await.unwrap();
        let mut received = [0; 4];
        guest.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"ls\r\x03");
        person.write_all(b"x\x1d").await.unwrap();
        assert_eq!(session.await.unwrap().unwrap(), Ended::Left);
    }

    #[tokio::test]
    async fn ctrl_bracket_is_heard_although_the_guest_takes_nothing() {
        let (mut person, terminal) = tokio::io::duplex(64);
        let (console, _guest) = tokio::io::duplex(1);
        let session = tokio::spawn(send_keys(terminal, console));
        person.write_all(&[b'x'; 2 * TYPED_AHEAD]).await.unwrap();
        person.write_all(&[LEAVE]).await.unwrap();
        assert_eq!(session.await.unwrap().unwrap(), Ended::Left);
    }

    #[tokio::test]
    async fn a_terminal_that_is_gone_is_told_from_leaving() {
        let (console, _guest) = tokio::io::duplex(64);
        let ended = send_keys(tokio::io::empty(), console).await.unwrap();
        assert_eq!(ended, Ended::Closed);
    }
}
