//! The console: vfkit makes a pseudo-terminal and names it in its log; its bytes are carried to a
//! socket pair, from which the console that all backends share takes them.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::task::JoinHandle;

/// Carries bytes between the terminal and a socket. Dropping it stops.
#[derive(Debug)]
pub(crate) struct Bridge {
    output: JoinHandle<()>,
    input: JoinHandle<()>,
}

impl Bridge {
    /// Opens the terminal at `path`; returns the other end of the socket.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, StdUnixStream)> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let terminal = open(path, flags, Mode::empty())?;
        // The guest's terminal driver does what a terminal does; this one only carries bytes.
        let mut attributes = tcgetattr(&terminal)?;
        attributes.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &attributes)?;
        // A character device behaves like a pipe of each direction.
        let writer = pipe::Sender::from_owned_fd_unchecked(terminal.try_clone()?)?;
        let reader = pipe::Receiver::from_owned_fd_unchecked(terminal)?;
        let (near, far) = StdUnixStream::pair()?;
        near.set_nonblocking(true)?;
        let (from_host, to_host) = UnixStream::from_std(near)?.into_split();
        let bridge = Self {
            output: tokio::spawn(carry_output(reader, to_host)),
            input: tokio::spawn(carry_input(from_host, writer)),
        };
        Ok((bridge, far))
    }

    /// Waits until everything that the guest wrote has been carried. To be called when vfkit has
    /// ended, which is what ends the output.
    pub(crate) async fn finished(mut self) {
        // It was aborted or panicked where this is an error; nothing is left to carry then.
        let _ended = (&mut self.output).await;
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.output.abort();
        self.input.abort();
    }
}

/// To the end of the terminal: macOS reports it as an end of file, Linux as EIO.
async fn carry_output(mut terminal: pipe::Receiver, mut to_host: OwnedWriteHalf) {
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = terminal.read(&mut buffer).await {
        if to_host.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn carry_input(mut from_host: OwnedReadHalf, mut terminal: pipe::Sender) {
    let mut buffer = vec![0; 1024];
    while let Ok(count @ 1..) = from_host.read(&mut buffer).await {
        if terminal.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
