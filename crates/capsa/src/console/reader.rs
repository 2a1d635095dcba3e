use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use capsa_core::{Error, Result};
use tokio::io::{AsyncRead, ReadBuf};

use super::log::{Lagged, ReaderId, Search, Searched};
use super::{Console, Pattern, ReadFrom};
use crate::status::exit_of;

/// Reads a console's output from a position of its own. See [`VmConsole`](crate::VmConsole).
pub struct ConsoleReader {
    console: Arc<Console>,
    id: ReaderId,
}

impl From<Lagged> for Error {
    fn from(Lagged(dropped): Lagged) -> Self {
        Self::ConsoleLagged { dropped }
    }
}

impl ConsoleReader {
    pub(super) fn new(console: Arc<Console>, from: ReadFrom, lossless: bool) -> Self {
        let id = console.log.add_reader(from, lossless);
        Self { console, id }
    }

    pub(super) fn another(&self, from: ReadFrom, lossless: bool) -> Self {
        Self::new(self.console.clone(), from, lossless)
    }

    /// Waits until `pattern` occurs in what this reader has not read yet, newline or not. Returns
    /// everything up to the end of the match and consumes exactly that: the next read goes on
    /// behind it. On an error nothing is consumed, and neither is it when the future is dropped.
    ///
    /// # Errors
    /// - [`Error::Timeout`] after `limit`, with the end of the console;
    /// - [`Error::EndedEarly`] where the VM ended and the pattern is not in the rest of its output;
    /// - [`Error::ConsoleLagged`] where more output came than the log keeps, so that what was
    ///   before the reader is not whole any more; the reader is then moved on to what is kept;
    /// - [`Error::Console`] where this is a lossless reader and the log is full.
    pub async fn wait_for(
        &mut self,
        pattern: impl Into<Pattern>,
        limit: Duration,
    ) -> Result<Vec<u8>> {
        let pattern = pattern.into();
        let operation = || format!("console output {pattern}");
        match tokio::time::timeout(limit, self.search(&pattern)).await {
            Ok(Ok(Searched::Found(text))) => Ok(text),
            Ok(Ok(Searched::Lagged(lagged))) => Err(lagged.into()),
            Ok(Ok(Searched::Full)) => Err(Error::Console {
                reason: format!(
                    "{pattern} does not occur in the {} bytes of output that the log can keep for \
                     a lossless reader; read them first, or raise ConsoleConfig::log_capacity",
                    self.console.log.capacity()
                ),
            }),
            Ok(Ok(Searched::Ended)) => Err(Error::EndedEarly {
                operation: operation(),
                exit: exit_of(self.console.status.clone()).await,
                console: self.console.end_for_error(),
            }),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Timeout {
                operation: operation(),
                limit,
                console: self.console.end_for_error(),
            }),
        }
    }

    async fn search(&self, pattern: &Pattern) -> Result<Searched> {
        let mut search = Search::new(pattern.matcher()?);
        Ok(poll_fn(|cx| self.console.log.poll_search(self.id, &mut search, cx)).await)
    }

    /// The last `count` bytes of the output, or as many as are kept; consumes nothing.
    pub fn tail(&self, count: usize) -> Vec<u8> {
        self.console.log.tail(count)
    }
}

impl AsyncRead for ConsoleReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.console.log.poll_read(self.id, cx, buffer));
        Poll::Ready(read.map_err(|lagged| io::Error::other(Error::from(lagged))))
    }
}

impl Drop for ConsoleReader {
    fn drop(&mut self) {
        self.console.log.remove_reader(self.id);
    }
}
