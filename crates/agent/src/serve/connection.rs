use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use capsa_agent_protocol::frame::{self, FrameBuffer, Kind};
use capsa_agent_protocol::{ProtocolError, Reply, Request, preamble};
use rustix::net::{Shutdown, shutdown};

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// A connection of the host, on which reads and writes wait.
pub(crate) struct Connection {
    // The standard library's name for anything with a descriptor that is read and written.
    socket: File,
    incoming: FrameBuffer,
    chunk: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self {
            socket: socket.into(),
            incoming: FrameBuffer::of_host(),
            chunk: Vec::new(),
        }
    }

    /// Exchanges preambles. A host of another version learns ours from it.
    pub(super) fn greet(&mut self) -> io::Result<()> {
        self.socket.write_all(&preamble::ours())?;
        let mut theirs = [0; preamble::BYTES];
        self.socket.read_exact(&mut theirs)?;
        Ok(preamble::check(&theirs)?)
    }

    /// The first message.
    pub(super) fn request(&mut self) -> io::Result<Request> {
        match self.next_frame()? {
            Some((Kind::Message, content)) => Ok(frame::decode(content)?),
            Some(_) => Err(ProtocolError::Unexpected("data in the place of a request").into()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The next frame; `None` where the host closed the connection.
    pub(crate) fn next_frame(&mut self) -> io::Result<Option<(Kind, &[u8])>> {
        loop {
            // Asked twice, because what is returned may not be borrowed across the loop.
            if self.incoming.has_frame()? {
                return Ok(self.incoming.next_frame()?);
            }
            self.chunk.resize(READ_BYTES, 0);
            match self.socket.read(&mut self.chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self
                    .incoming
                    .push(self.chunk.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends an answer.
    pub(crate) fn reply(&mut self, reply: &Reply) -> io::Result<()> {
        let frame = frame::message(reply)?;
        self.write(&frame)
    }

    /// Sends a whole frame.
    pub(crate) fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.socket.write_all(frame)
    }

    /// Ends a connection whose host may still be sending: what it was told last must reach it.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        shutdown(&self.socket, Shutdown::Write)?;
        while self.socket.read(&mut self.chunk)? > 0 {}
        Ok(())
    }

    /// The socket, and what came and was not yet taken.
    pub(crate) fn into_parts(self) -> (OwnedFd, FrameBuffer) {
        (self.socket.into(), self.incoming)
    }
}
