//! Keeps Ctrl-O a byte like any other on Linux's virtio console.
//!
//! Linux takes Ctrl-O on its hypervisor console (`drivers/tty/hvc/hvc_console.c`) for the beginning of
//! a SysRq command and swallows it together with the byte behind it, which it obeys; a second Ctrl-O
//! behind the first one stands for the byte itself. So each one is sent twice.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

const CONTROL_O: u8 = 0x0f;

pub(super) struct ControlODoubled<S> {
    sink: S,
    /// The first of a pair has been written, and its second has not.
    second_due: bool,
}

impl<S: AsyncWrite + Unpin> ControlODoubled<S> {
    pub(super) fn new(sink: S) -> Self {
        Self {
            sink,
            second_due: false,
        }
    }

    fn poll_write_second(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.second_due {
            let written = ready!(Pin::new(&mut self.sink).poll_write(cx, &[CONTROL_O]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.second_due = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ControlODoubled<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_write_second(cx))?;
        let plain = bytes.iter().position(|&byte| byte == CONTROL_O);
        let piece = match plain {
            Some(0) => &bytes[..1],
            Some(length) => &bytes[..length],
            None => bytes,
        };
        let written = ready!(Pin::new(&mut self.sink).poll_write(cx, piece))?;
        if plain == Some(0) && written == 1 {
            self.second_due = true;
            // Where it cannot be written now, the next write or flush begins with it.
            if let Poll::Ready(Err(error)) = self.poll_write_second(cx) {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_second(cx))?;
        Pin::new(&mut self.sink).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write_second(cx))?;
        Pin::new(&mut self.sink).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// What comes out where `input` goes in, by a way that holds `capacity` bytes.
    async fn sent(input: &[u8], capacity: usize) -> Vec<u8> {
        let (sink, mut guest) = duplex(capacity);
        let input = input.to_vec();
        let writing = tokio::spawn(async move {
            let mut sink = ControlODoubled::new(sink);
            sink.write_all(&input).await.unwrap();
            sink.flush().await.unwrap();
        });
        let mut received = Vec::new();
        guest.read_to_end(&mut received).await.unwrap();
        writing.await.unwrap();
        received
    }

    #[tokio::test]
    async fn each_control_o_is_sent_twice_and_nothing_else() {
        for (input, expected) in [
            (&b"plain"[..], &b"plain"[..]),
            (b"\x0f", b"\x0f\x0f"),
            (b"\x0fc", b"\x0f\x0fc"),
            (b"a\x0fb\x0f\x0f", b"a\x0f\x0fb\x0f\x0f\x0f\x0f"),
            (b"", b""),
        ] {
            for capacity in [1, 2, 64] {
                assert_eq!(sent(input, capacity).await, expected, "{input:?}");
            }
        }
    }
}
