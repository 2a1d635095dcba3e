//! The guest's console.
//!
//! One task drains it into a bounded log from the moment the VM starts, so that a console that
//! nobody reads never holds up the guest. Readers look at the log, each from a position of its own.

mod control_o;
mod input;
mod log;
mod pattern;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use capsa_core::{ConsoleIo, Error, Result, VmStatus, WindowSize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use control_o::ControlODoubled;
use input::Input;
use log::Log;
pub use log::ReadFrom;
pub use pattern::Pattern;
pub use reader::ConsoleReader;
pub use writer::ConsoleWriter;

/// The smallest and the largest log, in bytes.
const LOG_CAPACITY: std::ops::RangeInclusive<usize> = 4 << 10..=1 << 30;
/// How much is taken from the guest at a time.
const DRAIN_BUFFER: usize = 32 * 1024;
/// How much of the console an error shows.
const ERROR_TAIL: usize = 2 * 1024;

/// How a VM's console is set up. By default there is one, and the last 1 MiB of it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleConfig {
    pub(crate) enabled: bool,
    pub(crate) log_capacity: usize,
    pub(crate) window_size: Option<WindowSize>,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            log_capacity: 1 << 20,
            window_size: None,
        }
    }
}

impl ConsoleConfig {
    /// A console, the last 1 MiB of which is kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// No console at all.
    pub fn disabled() -> Self {
        Self {
            enabled: false,
            ..Self::default()
        }
    }

    /// How many of the last bytes of output are kept: 4 KiB to 1 GiB.
    pub fn log_capacity(mut self, bytes: usize) -> Self {
        self.log_capacity = bytes;
        self
    }

    /// The size of the terminal behind the console.
    pub fn window_size(mut self, size: WindowSize) -> Self {
        self.window_size = Some(size);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if LOG_CAPACITY.contains(&self.log_capacity) {
            return Ok(());
        }
        Err(Error::invalid_setting(
            "console log capacity",
            self.log_capacity,
            "the log keeps 4 KiB to 1 GiB",
            "ask for 4096 to 1073741824 bytes",
        ))
    }
}

/// What the handle, the drain, the readers and the writers of one console share.
pub(crate) struct Console {
    log: Log,
    input: Input,
    status: watch::Receiver<VmStatus>,
}

impl Console {
    pub(crate) fn new(config: &ConsoleConfig, status: watch::Receiver<VmStatus>) -> Arc<Self> {
        Arc::new(Self {
            log: Log::new(config.log_capacity),
            input: Input::new(),
            status,
        })
    }

    /// Starts draining. Needs a tokio runtime. `hvc` tells that the input goes to Linux's virtio
    /// console.
    pub(crate) fn open(self: &Arc<Self>, io: ConsoleIo, hvc: bool) {
        self.input.open(if hvc {
            Box::new(ControlODoubled::new(io.input))
        } else {
            io.input
        });
        tokio::spawn(drain(io.output, CloseOnDrop(self.clone())));
    }

    /// No more output will come, and no more input is taken.
    pub(crate) fn close(&self) {
        self.log.close();
        self.input.close();
    }

    /// The end of the output as text, for an error message.
    pub(crate) fn end_for_error(&self) -> String {
        String::from_utf8_lossy(&self.log.tail(ERROR_TAIL)).into_owned()
    }
}

/// Readers must not wait for a drain that is gone, whatever ended it.
struct CloseOnDrop(Arc<Console>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn drain(mut output: Box<dyn AsyncRead + Send + Unpin>, console: CloseOnDrop) {
    let log = &console.0.log;
    let mut buffer = vec![0; DRAIN_BUFFER];
    loop {
        let room = poll_fn(|cx| log.poll_room(cx)).await.min(buffer.len());
        let Some(space) = buffer.get_mut(..room) else {
            return;
        };
        match output.read(space).await {
            Ok(0) => return,
            Ok(count) => log.append(space.get(..count).unwrap_or_default()),
            Err(error) => {
                tracing::debug!(%error, "the console's output ended with an error");
                return;
            }
        }
    }
}

/// The console of a VM: reads what the guest writes, writes what the guest reads.
///
/// Reading starts with the oldest byte that is still kept. [`AsyncRead`] and [`AsyncWrite`] work as
/// on any stream; a read ends (0 bytes) when the VM has ended. A reader that falls more than the
/// log's capacity behind is told so by [`Error::ConsoleLagged`] (within the [`std::io::Error`]),
/// and goes on with what is kept.
///
/// ```no_run
/// # async fn example(vm: &capsa::VmHandle) -> capsa::Result<()> {
/// use std::time::Duration;
/// let mut console = vm.console()?;
/// console.wait_for("# ", Duration::from_secs(30)).await?;
/// console.write_line("uname -r").await?;
/// # Ok(())
/// # }
/// ```
pub struct VmConsole {
    reader: ConsoleReader,
    writer: ConsoleWriter,
}

impl VmConsole {
    pub(crate) fn new(console: Arc<Console>) -> Self {
        Self {
            reader: ConsoleReader::new(console.clone(), ReadFrom::Start, false),
            writer: ConsoleWriter::new(console),
        }
    }

    /// One more reader with a position of its own.
    pub fn reader(&self, from: ReadFrom) -> ConsoleReader {
        self.reader.another(from, false)
    }

    /// A reader that misses nothing: where it falls behind by the log's capacity, the guest's
    /// output waits for it. Made before the start, it sees all of the output.
    pub fn lossless_reader(&self, from: ReadFrom) -> ConsoleReader {
        self.reader.another(from, true)
    }

    /// One more writer.
    pub fn writer(&self) -> ConsoleWriter {
        self.writer.clone()
    }

    /// Takes the two halves apart; the reader keeps its position.
    pub fn split(self) -> (ConsoleReader, ConsoleWriter) {
        (self.reader, self.writer)
    }

    /// See [`ConsoleReader::wait_for`].
    ///
    /// # Errors
    /// As there.
    pub async fn wait_for(
        &mut self,
        pattern: impl Into<Pattern>,
        limit: Duration,
    ) -> Result<Vec<u8>> {
        self.reader.wait_for(pattern, limit).await
    }

    /// The last `count` bytes of the output, or as many as are kept; consumes nothing.
    pub fn tail(&self, count: usize) -> Vec<u8> {
        self.reader.tail(count)
    }

    /// See [`ConsoleWriter::write_line`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_line(&mut self, line: &str) -> Result<()> {
        self.writer.write_line(line).await
    }

    /// See [`ConsoleWriter::interrupt`].
    ///
    /// # Errors
    /// As there.
    pub async fn interrupt(&mut self) -> Result<()> {
        self.writer.interrupt().await
    }

    /// See [`ConsoleWriter::send_eof`].
    ///
    /// # Errors
    /// As there.
    pub async fn send_eof(&mut self) -> Result<()> {
        self.writer.send_eof().await
    }
}

impl AsyncRead for VmConsole {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buffer)
    }
}

impl AsyncWrite for VmConsole {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
