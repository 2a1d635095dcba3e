use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use capsa_core::{Error, Result};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::Console;

/// The byte that a terminal's Ctrl-C sends.
const INTERRUPT: u8 = 0x03;
/// The byte that a terminal's Ctrl-D sends.
const END_OF_FILE: u8 = 0x04;

/// Writes what the guest reads from its console. See [`VmConsole`](crate::VmConsole).
///
/// Several writers may be used at once; each write that a writer makes by itself stays together,
/// a longer one that the guest takes in parts may have another's bytes in between.
#[derive(Clone)]
pub struct ConsoleWriter {
    console: Arc<Console>,
}

impl ConsoleWriter {
    pub(super) fn new(console: Arc<Console>) -> Self {
        Self { console }
    }

    /// Writes `line` and a newline. Waits as long as the guest takes nothing.
    ///
    /// # Errors
    /// [`Error::Ended`] where the VM has ended, [`Error::Io`] where it is not started.
    pub async fn write_line(&mut self, line: &str) -> Result<()> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        self.send(&bytes).await
    }

    /// Types Ctrl-C: the guest's terminal interrupts what runs in its foreground.
    ///
    /// # Errors
    /// As [`write_line`](Self::write_line).
    pub async fn interrupt(&mut self) -> Result<()> {
        self.send(&[INTERRUPT]).await
    }

    /// Types Ctrl-D: at the start of a line, the guest's terminal reports the end of its input.
    ///
    /// # Errors
    /// As [`write_line`](Self::write_line).
    pub async fn send_eof(&mut self) -> Result<()> {
        self.send(&[END_OF_FILE]).await
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let sent = async {
            self.write_all(bytes).await?;
            self.flush().await
        }
        .await;
        sent.map_err(|source| match self.console.status.borrow().exit() {
            Some(exit) => Error::Ended(exit.clone()),
            None => Error::io("writing to the console", source),
        })
    }
}

impl AsyncWrite for ConsoleWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.console
            .input
            .poll(cx, |sink, cx| sink.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.console.input.poll(cx, |sink, cx| sink.poll_flush(cx))
    }

    /// Flushes; the guest's input stays open for other writers, and ends with the VM.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
