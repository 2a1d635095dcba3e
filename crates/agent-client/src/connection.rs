//! One connection: the preambles, and frames after them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use capsa_agent_protocol::frame::{self, FrameBuffer, Kind};
use capsa_agent_protocol::{ProtocolError, Reply, Request, preamble};
use capsa_core::ByteStream;
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf};

use crate::{AgentError, Connector, Result};

/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Takes frames from what an agent sends. Its future may be dropped: nothing is lost.
pub(crate) struct FrameReader {
    greeted: bool,
    buffer: FrameBuffer,
    /// What is read before the preamble is complete.
    preamble: Vec<u8>,
    chunk: Vec<u8>,
}

/// One frame.
pub(crate) type Frame = (Kind, Vec<u8>);

impl FrameReader {
    pub(crate) fn new() -> Self {
        Self {
            greeted: false,
            buffer: FrameBuffer::of_agent(),
            preamble: Vec::new(),
            chunk: vec![0; READ_BYTES],
        }
    }

    /// The next frame; `None` where the agent closed the connection.
    pub(crate) async fn next(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        doing: &'static str,
    ) -> Result<Option<Frame>> {
        std::future::poll_fn(|context| self.poll_next(context, stream, doing)).await
    }

    pub(crate) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut (impl AsyncRead + Unpin),
        doing: &'static str,
    ) -> Poll<Result<Option<Frame>>> {
        loop {
            if self.greeted
                && let Some((kind, content)) = self.buffer.next_frame()?
            {
                return Poll::Ready(Ok(Some((kind, content.to_vec()))));
            }
            let mut chunk = ReadBuf::new(&mut self.chunk);
            let count = match ready!(Pin::new(&mut *stream).poll_read(context, &mut chunk)) {
                Ok(()) => chunk.filled().len(),
                Err(error) => match AgentError::connection(doing, error) {
                    AgentError::Gone { .. } => 0,
                    error => return Poll::Ready(Err(error)),
                },
            };
            if count == 0 {
                return Poll::Ready(Ok(None));
            }
            self.take(count)?;
        }
    }

    fn take(&mut self, count: usize) -> Result<()> {
        let came = self.chunk.get(..count).unwrap_or_default();
        if self.greeted {
            self.buffer.push(came);
            return Ok(());
        }
        self.preamble.extend_from_slice(came);
        if let Some((theirs, rest)) = self.preamble.split_first_chunk() {
            preamble::check(theirs)?;
            self.buffer.push(rest);
            self.greeted = true;
            self.preamble = Vec::new();
        } else if !preamble::MAGIC.starts_with(
            self.preamble
                .get(..preamble::MAGIC.len())
                .unwrap_or(&self.preamble),
        ) {
            return Err(ProtocolError::Magic.into());
        }
        Ok(())
    }

    /// What came and is not yet taken.
    pub(crate) fn into_rest(self) -> Vec<u8> {
        self.buffer.into_rest()
    }
}

/// A connection on which a request was sent.
pub(crate) struct Connection {
    pub(crate) stream: Box<dyn ByteStream>,
    pub(crate) reader: FrameReader,
    doing: &'static str,
}

impl Connection {
    /// Opens one and sends `request`.
    pub(crate) async fn open(
        connector: &dyn Connector,
        request: &Request,
        doing: &'static str,
    ) -> Result<Self> {
        let mut first = preamble::ours().to_vec();
        first.extend(frame::message(request)?);
        let mut stream = connector.connect().await.map_err(AgentError::Connect)?;
        // An agent of another version closes at once: what it said before is still to be read.
        let sent = stream.write_all(&first).await;
        let mut connection = Self {
            stream,
            reader: FrameReader::new(),
            doing,
        };
        if let Err(error) = sent {
            return Err(match connection.next().await {
                Err(AgentError::Protocol(reason)) => reason.into(),
                _ => AgentError::connection(doing, error),
            });
        }
        Ok(connection)
    }

    /// The next frame.
    pub(crate) async fn next(&mut self) -> Result<Frame> {
        let doing = self.doing;
        self.reader
            .next(&mut self.stream, doing)
            .await?
            .ok_or(AgentError::Gone { doing })
    }

    /// As [`next`](Self::next).
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Frame>> {
        let doing = self.doing;
        let frame = ready!(self.reader.poll_next(context, &mut self.stream, doing))?;
        Poll::Ready(frame.ok_or(AgentError::Gone { doing }))
    }

    /// The next frame, which must be a reply.
    pub(crate) async fn reply(&mut self) -> Result<Reply> {
        match self.next().await? {
            (Kind::Message, content) => Ok(frame::decode(&content)?),
            _ => Err(ProtocolError::Unexpected("data in the place of an answer").into()),
        }
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .await
            .map_err(|error| AgentError::connection(self.doing, error))
    }
}
