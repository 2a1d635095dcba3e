use std::ffi::OsString;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use capsa_agent_protocol::files::{FileRequest, WriteRequest};
use capsa_agent_protocol::frame::{self, Kind, MAX_DATA_BYTES};
use capsa_agent_protocol::{ByteString, Failure, ProtocolError, Reply, Request};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::client::{collect, unexpected};
use crate::connection::Connection;
use crate::{AgentClient, AgentError, Changes, Entry, Metadata, Result};

/// A directory of more entries is not listed.
const MAX_ENTRIES: usize = 4_000_000;

/// The guest's files. Paths are those of the guest; relative ones are taken from `/`.
///
/// Every method fails with [`AgentError::Refused`], which carries the guest's error number, where the
/// guest refuses; [`AgentError::is_not_found`] tells a missing file.
#[derive(Clone)]
pub struct Files {
    pub(crate) client: AgentClient,
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteOptions {
    /// Whether it is made where it is missing.
    pub create: bool,
    /// Whether it must be missing.
    pub exclusive: bool,
    /// Whether what it holds goes.
    pub truncate: bool,
    /// Whether everything goes to its end.
    pub append: bool,
    /// Where to begin, in bytes.
    pub offset: u64,
    /// Permissions of a file that is made.
    pub mode: u32,
    /// Whether it is on the guest's disk when [`FileWriter::finish`] returns.
    pub sync: bool,
}

impl Default for WriteOptions {
    /// A file is made with mode 0644, or replaced.
    fn default() -> Self {
        Self {
            create: true,
            exclusive: false,
            truncate: true,
            append: false,
            offset: 0,
            mode: 0o644,
            sync: false,
        }
    }
}

impl Files {
    pub(crate) fn new(client: AgentClient) -> Self {
        Self { client }
    }

    /// Reads a file of at most [`MAX_KEPT_BYTES`](crate::MAX_KEPT_BYTES).
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn read(&self, path: impl Into<OsString>) -> Result<Vec<u8>> {
        let mut reader = self.reader(path, 0, None).await?;
        let read = collect(Some(&mut reader), "a file of the guest").await;
        // The guest's own words, where it was the guest that failed.
        match reader.failure.take() {
            Some(failure) => Err(failure),
            None => read,
        }
    }

    /// Replaces a file, or makes one of mode 0644.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn write(&self, path: impl Into<OsString>, content: impl AsRef<[u8]>) -> Result<()> {
        let mut writer = self.writer(path, WriteOptions::default()).await?;
        // What went wrong is told by the end.
        let _ = writer.write_all(content.as_ref()).await;
        writer.finish().await
    }

    /// Reads a file as a stream: from `offset`, at most `length` bytes.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn reader(
        &self,
        path: impl Into<OsString>,
        offset: u64,
        length: Option<u64>,
    ) -> Result<FileReader> {
        let path = ByteString::from(path.into());
        let operation = format!("reading {}", path.display());
        let request = FileRequest::Read {
            path,
            offset,
            length,
        };
        let connection = self.begin(request, &operation).await?;
        Ok(FileReader {
            connection,
            operation,
            chunk: Vec::new(),
            read: 0,
            ended: false,
            failure: None,
        })
    }

    /// Writes a file as a stream; [`FileWriter::finish`] ends it.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn writer(
        &self,
        path: impl Into<OsString>,
        options: WriteOptions,
    ) -> Result<FileWriter> {
        let path = ByteString::from(path.into());
        let operation = format!("writing {}", path.display());
        let request = FileRequest::Write(WriteRequest {
            path,
            create: options.create,
            exclusive: options.exclusive,
            truncate: options.truncate,
            append: options.append,
            offset: options.offset,
            mode: options.mode,
            sync: options.sync,
        });
        let connection = self.begin(request, &operation).await?;
        Ok(FileWriter {
            connection,
            operation,
            pending: Vec::new(),
            written: 0,
            answer: None,
        })
    }

    /// What a file is; links are followed.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn metadata(&self, path: impl Into<OsString>) -> Result<Metadata> {
        self.stat(path.into(), true).await
    }

    /// What a file is; a link is told as such.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn symlink_metadata(&self, path: impl Into<OsString>) -> Result<Metadata> {
        self.stat(path.into(), false).await
    }

    /// Whether there is such a file; links are followed.
    ///
    /// # Errors
    /// [`AgentError`], but not for a missing file.
    pub async fn exists(&self, path: impl Into<OsString>) -> Result<bool> {
        match self.stat(path.into(), true).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn stat(&self, path: OsString, follow: bool) -> Result<Metadata> {
        let path = ByteString::from(path);
        let operation = format!("looking at {}", path.display());
        let request = FileRequest::Stat { path, follow };
        match self.ask(request, &operation).await? {
            Reply::Metadata(metadata) => Ok(metadata),
            _ => Err(unexpected()),
        }
    }

    /// What a directory holds, in no order.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn list(&self, path: impl Into<OsString>) -> Result<Vec<Entry>> {
        let path = ByteString::from(path.into());
        let operation = format!("listing {}", path.display());
        let request = Request::File(FileRequest::List { path });
        let mut connection = self.client.open(&request, "listing a directory").await?;
        let mut entries = Vec::new();
        loop {
            match connection.reply().await? {
                Reply::Entries(more) => entries.extend(more),
                Reply::Done => return Ok(entries),
                Reply::Failed(failure) => return Err(AgentError::refused(operation, failure)),
                _ => return Err(unexpected()),
            }
            if entries.len() > MAX_ENTRIES {
                return Err(AgentError::TooLong {
                    what: operation,
                    limit: MAX_ENTRIES,
                });
            }
        }
    }

    /// Makes a directory of this mode; with `parents`, missing ones too, and one that is there is fine.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn make_directory(
        &self,
        path: impl Into<OsString>,
        parents: bool,
        mode: u32,
    ) -> Result<()> {
        let path = ByteString::from(path.into());
        let operation = format!("making the directory {}", path.display());
        let request = FileRequest::MakeDirectory {
            path,
            parents,
            mode,
        };
        self.ask_done(request, &operation).await
    }

    /// Removes a file, a link or a directory; with `recursive`, a directory with all it holds.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn remove(&self, path: impl Into<OsString>, recursive: bool) -> Result<()> {
        let path = ByteString::from(path.into());
        let operation = format!("removing {}", path.display());
        self.ask_done(FileRequest::Remove { path, recursive }, &operation)
            .await
    }

    /// Renames a file, within one file system; with `replace`, in the place of another.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn rename(
        &self,
        from: impl Into<OsString>,
        to: impl Into<OsString>,
        replace: bool,
    ) -> Result<()> {
        let (from, to) = (ByteString::from(from.into()), ByteString::from(to.into()));
        let operation = format!("renaming {} to {}", from.display(), to.display());
        self.ask_done(FileRequest::Rename { from, to, replace }, &operation)
            .await
    }

    /// Changes a file's mode, owner, times or length; links are followed.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn change(&self, path: impl Into<OsString>, changes: Changes) -> Result<()> {
        let path = ByteString::from(path.into());
        let operation = format!("changing {}", path.display());
        let request = FileRequest::Change {
            path,
            follow: true,
            changes,
        };
        self.ask_done(request, &operation).await
    }

    /// Makes a symbolic link at `path` to `target`.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn symlink(
        &self,
        target: impl Into<OsString>,
        path: impl Into<OsString>,
    ) -> Result<()> {
        let path = ByteString::from(path.into());
        let operation = format!("making the link {}", path.display());
        let target = target.into().into();
        self.ask_done(FileRequest::Symlink { path, target }, &operation)
            .await
    }

    /// Makes a hard link at `path` to the file `original`.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn hard_link(
        &self,
        original: impl Into<OsString>,
        path: impl Into<OsString>,
    ) -> Result<()> {
        let path = ByteString::from(path.into());
        let operation = format!("making the link {}", path.display());
        let original = original.into().into();
        self.ask_done(FileRequest::HardLink { path, original }, &operation)
            .await
    }

    /// Where a symbolic link points to.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn read_link(&self, path: impl Into<OsString>) -> Result<ByteString> {
        let path = ByteString::from(path.into());
        let operation = format!("reading the link {}", path.display());
        self.ask_path(FileRequest::ReadLink { path }, &operation)
            .await
    }

    /// The path without links, `.` and `..`.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn canonicalize(&self, path: impl Into<OsString>) -> Result<ByteString> {
        let path = ByteString::from(path.into());
        let operation = format!("resolving {}", path.display());
        self.ask_path(FileRequest::Canonicalize { path }, &operation)
            .await
    }

    /// Asks for something that data follows.
    pub(crate) async fn begin(&self, request: FileRequest, operation: &str) -> Result<Connection> {
        let request = Request::File(request);
        let mut connection = self.client.open(&request, "working on a file").await?;
        match connection.reply().await? {
            Reply::Done => Ok(connection),
            Reply::Failed(failure) => Err(AgentError::refused(operation, failure)),
            _ => Err(unexpected()),
        }
    }

    async fn ask(&self, request: FileRequest, operation: &str) -> Result<Reply> {
        let request = Request::File(request);
        let mut connection = self.client.open(&request, "working on a file").await?;
        match connection.reply().await? {
            Reply::Failed(failure) => Err(AgentError::refused(operation, failure)),
            reply => Ok(reply),
        }
    }

    async fn ask_done(&self, request: FileRequest, operation: &str) -> Result<()> {
        match self.ask(request, operation).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn ask_path(&self, request: FileRequest, operation: &str) -> Result<ByteString> {
        match self.ask(request, operation).await? {
            Reply::Path(path) => Ok(path),
            _ => Err(unexpected()),
        }
    }
}

/// A file of the guest that is read.
pub struct FileReader {
    connection: Connection,
    operation: String,
    chunk: Vec<u8>,
    read: usize,
    ended: bool,
    failure: Option<AgentError>,
}

impl AsyncRead for FileReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            let rest = this.chunk.get(this.read..).unwrap_or_default();
            if !rest.is_empty() {
                let count = rest.len().min(buffer.remaining());
                buffer.put_slice(rest.get(..count).unwrap_or_default());
                this.read += count;
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            let frame = ready!(this.connection.poll_next(context));
            match frame.and_then(|frame| file_data(frame, &this.operation)) {
                Ok(Some(chunk)) => {
                    this.chunk = chunk;
                    this.read = 0;
                }
                Ok(None) => this.ended = true,
                Err(error) => {
                    this.ended = true;
                    let text = error.to_string();
                    this.failure = Some(error);
                    return Poll::Ready(Err(io::Error::other(text)));
                }
            }
        }
    }
}

/// A piece of a file; `None` at its end.
fn file_data((kind, content): (Kind, Vec<u8>), operation: &str) -> Result<Option<Vec<u8>>> {
    match kind {
        Kind::Data => Ok(Some(content)),
        Kind::End => Ok(None),
        Kind::Message => match frame::decode(&content)? {
            Reply::Failed(failure) => Err(AgentError::refused(operation, failure)),
            _ => Err(unexpected()),
        },
        Kind::ErrorData => Err(ProtocolError::Unexpected("standard error of a file").into()),
    }
}

/// A file of the guest that is written. What was written is certain only once
/// [`finish`](Self::finish) has returned; dropped before, the file holds a part of it.
pub struct FileWriter {
    connection: Connection,
    operation: String,
    /// A frame that is not all sent.
    pending: Vec<u8>,
    written: usize,
    /// The agent's answer, where it came before the end.
    answer: Option<Result<(), Failure>>,
}

impl FileWriter {
    /// Ends the file, and waits until the guest has all of it.
    ///
    /// # Errors
    /// [`AgentError`], for what went wrong while it was written too.
    pub async fn finish(mut self) -> Result<()> {
        let sent = std::future::poll_fn(|context| self.poll_send(context)).await;
        if self.answer.is_none() {
            let sent = match sent {
                Ok(()) => self.connection.write(&frame::frame(Kind::End, &[])).await,
                Err(error) => Err(AgentError::connection("writing a file", error)),
            };
            // An agent that cannot take more says why.
            match (self.connection.reply().await, sent) {
                (Ok(reply), _) => self.take_answer(reply)?,
                (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
            }
        }
        match self.answer {
            Some(Ok(())) => Ok(()),
            Some(Err(failure)) => Err(AgentError::refused(self.operation, failure)),
            None => Err(unexpected()),
        }
    }

    fn take_answer(&mut self, reply: Reply) -> Result<()> {
        self.answer = Some(match reply {
            Reply::Done => Ok(()),
            Reply::Failed(failure) => Err(failure),
            _ => return Err(unexpected()),
        });
        Ok(())
    }

    /// Sends what is pending, unless the agent refuses meanwhile.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.answer.is_none()
            && let Poll::Ready(frame) = self.connection.poll_next(context)
        {
            let reply = frame.and_then(|(_, content)| Ok(frame::decode(&content)?));
            reply
                .and_then(|reply| self.take_answer(reply))
                .map_err(io::Error::other)?;
        }
        if self.answer.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        while let Some(rest) = self.pending.get(self.written..)
            && !rest.is_empty()
        {
            let stream = Pin::new(&mut self.connection.stream);
            match ready!(stream.poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        self.pending.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FileWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(context))?;
        let taken = bytes
            .get(..bytes.len().min(MAX_DATA_BYTES))
            .unwrap_or_default();
        if !taken.is_empty() {
            self.pending = frame::frame(Kind::Data, taken);
        }
        // What does not go out now goes with the next call.
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

impl fmt::Debug for FileReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileReader").field(&self.operation).finish()
    }
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileWriter").field(&self.operation).finish()
    }
}
