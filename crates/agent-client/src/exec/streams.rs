//! The streams of a command.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use capsa_agent_protocol::exec::OutputStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::state::Shared;

/// What a command reads. A write waits while the command does not read. Writing to a command that
/// reads no more fails with `BrokenPipe`.
pub struct ChildStdin {
    shared: Arc<Shared>,
}

/// What a command writes to standard output. Dropping it throws away what still comes.
pub struct ChildStdout {
    shared: Arc<Shared>,
}

/// What a command writes to standard error. Dropping it throws away what still comes.
pub struct ChildStderr {
    shared: Arc<Shared>,
}

impl ChildStdin {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl AsyncWrite for ChildStdin {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.shared.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared.close_input();
        self.shared.poll_flush(context)
    }
}

impl Drop for ChildStdin {
    fn drop(&mut self) {
        self.shared.close_input();
    }
}

impl fmt::Debug for ChildStdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildStdin").finish_non_exhaustive()
    }
}

macro_rules! output {
    ($name:ident, $stream:expr) => {
        impl $name {
            pub(super) fn new(shared: Arc<Shared>) -> Self {
                Self { shared }
            }
        }

        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                context: &mut Context<'_>,
                buffer: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                self.shared.poll_read($stream, context, buffer)
            }
        }

        impl Drop for $name {
            fn drop(&mut self) {
                self.shared.stop_reading($stream);
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        }
    };
}

output!(ChildStdout, OutputStream::Stdout);
output!(ChildStderr, OutputStream::Stderr);
