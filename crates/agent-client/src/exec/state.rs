//! What a command's handles and the task that drives its connection share.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use capsa_agent_protocol::ProtocolError;
use capsa_agent_protocol::exec::{
    ExecControl, ExecEvent, ExitStatus, OutputStream, Terminal, WINDOW_BYTES,
};
use capsa_agent_protocol::frame::{self, Kind, MAX_DATA_BYTES};
use tokio::io::ReadBuf;
use tokio::sync::{Notify, watch};

use super::index;

/// So much read output is told to the agent at once.
const CREDIT_STEP: u32 = WINDOW_BYTES / 4;
/// More signals than this that the agent has not yet taken are dropped.
const MAX_SIGNALS: usize = 64;

/// Why a command's connection broke.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    /// The agent, or its guest, has ended.
    Gone,
    /// The agent sent what makes no sense.
    Protocol(ProtocolError),
    /// The connection failed.
    Io(io::ErrorKind, String),
}

/// How a command ended, or why that is not known.
pub(super) type Ended = Option<Result<ExitStatus, Broken>>;

pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes the driver: there is something to send.
    outgoing: Notify,
    /// Wakes the driver: nobody wants to know more.
    given_up: Notify,
    ended: watch::Sender<Ended>,
}

struct State {
    outputs: [Output; 2],
    input: Input,
    signals: VecDeque<i32>,
    size: Option<Terminal>,
    broken: Option<Broken>,
    /// The command's main handle is gone.
    dropped: bool,
}

/// One stream that the command writes.
struct Output {
    chunks: VecDeque<Vec<u8>>,
    /// Bytes of the first chunk that are read.
    read: usize,
    /// Bytes that the agent may still send.
    window: u32,
    /// Bytes that were read and not told to the agent.
    unacknowledged: u32,
    ended: bool,
    /// Nobody reads it: what comes is thrown away.
    unread: bool,
    reader: Option<Waker>,
}

/// What the command reads.
struct Input {
    pending: Vec<u8>,
    /// Bytes that may still be sent.
    window: u32,
    /// There will be no more.
    closing: bool,
    /// The agent was told so.
    closed: bool,
    /// The command reads no more.
    refused: bool,
    writer: Option<Waker>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let output = || Output {
            chunks: VecDeque::new(),
            read: 0,
            window: WINDOW_BYTES,
            unacknowledged: 0,
            ended: false,
            unread: false,
            reader: None,
        };
        Self {
            state: Mutex::new(State {
                outputs: [output(), output()],
                input: Input {
                    pending: Vec::new(),
                    window: WINDOW_BYTES,
                    closing: false,
                    closed: false,
                    refused: false,
                    writer: None,
                },
                signals: VecDeque::new(),
                size: None,
                broken: None,
                dropped: false,
            }),
            outgoing: Notify::new(),
            given_up: Notify::new(),
            ended: watch::Sender::new(None),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ended(&self) -> watch::Receiver<Ended> {
        self.ended.subscribe()
    }

    pub(super) fn send(&self, control: ExecControl) {
        let mut state = self.state();
        match control {
            ExecControl::Signal(number) if state.signals.len() < MAX_SIGNALS => {
                state.signals.push_back(number);
            }
            ExecControl::Resize(size) => state.size = Some(size),
            ExecControl::Signal(_) | ExecControl::Credit(..) => {}
        }
        drop(state);
        self.outgoing.notify_one();
    }

    /// The connection broke; what had come before can still be read.
    pub(super) fn fail(&self, broken: Broken) {
        let mut state = self.state();
        state.broken.get_or_insert(broken.clone());
        for output in &mut state.outputs {
            wake(&mut output.reader);
        }
        wake(&mut state.input.writer);
        drop(state);
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(Err(broken));
            }
            first
        });
    }

    /// What came from the agent. `true` once there is nothing more to come.
    pub(super) fn take(&self, kind: Kind, content: Vec<u8>) -> Result<bool, ProtocolError> {
        match kind {
            Kind::Data => self.output(OutputStream::Stdout, content)?,
            Kind::ErrorData => self.output(OutputStream::Stderr, content)?,
            Kind::End => {
                return Err(ProtocolError::Unexpected(
                    "an end of output without its name",
                ));
            }
            Kind::Message => self.event(frame::decode(&content)?)?,
        }
        let state = self.state();
        let all_read = state.outputs.iter().all(|output| output.ended);
        Ok(all_read && self.ended.borrow().is_some())
    }

    fn output(&self, stream: OutputStream, content: Vec<u8>) -> Result<(), ProtocolError> {
        let mut state = self.state();
        let Some(output) = state.outputs.get_mut(index(stream)) else {
            return Ok(());
        };
        let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
        output.window = output
            .window
            .checked_sub(length)
            .ok_or(ProtocolError::Unexpected("more output than was asked for"))?;
        if output.ended {
            return Err(ProtocolError::Unexpected("output behind its end"));
        }
        if output.unread {
            output.unacknowledged += length;
            drop(state);
            self.outgoing.notify_one();
        } else if !content.is_empty() {
            output.chunks.push_back(content);
            wake(&mut output.reader);
        }
        Ok(())
    }

    fn event(&self, event: ExecEvent) -> Result<(), ProtocolError> {
        let mut state = self.state();
        match event {
            ExecEvent::StdinCredit(bytes) => {
                state.input.window = state
                    .input
                    .window
                    .checked_add(bytes)
                    .filter(|window| *window <= WINDOW_BYTES)
                    .ok_or(ProtocolError::Unexpected("a window of that size"))?;
                wake(&mut state.input.writer);
            }
            ExecEvent::StdinClosed => {
                state.input.refused = true;
                state.input.pending = Vec::new();
                wake(&mut state.input.writer);
            }
            ExecEvent::OutputEnd(stream) => {
                if let Some(output) = state.outputs.get_mut(index(stream)) {
                    output.ended = true;
                    wake(&mut output.reader);
                }
            }
            ExecEvent::Exited(status) => {
                state.input.refused = true;
                wake(&mut state.input.writer);
                drop(state);
                self.ended.send_if_modified(|ended| {
                    let first = ended.is_none();
                    if first {
                        *ended = Some(Ok(status));
                    }
                    first
                });
            }
        }
        Ok(())
    }

    /// Waits for something to send, and gives it as frames.
    pub(super) async fn outgoing(&self) -> Result<Vec<u8>, ProtocolError> {
        loop {
            let frames = self.state().outgoing()?;
            if !frames.is_empty() {
                return Ok(frames);
            }
            self.outgoing.notified().await;
        }
    }

    pub(super) fn poll_read(
        &self,
        stream: OutputStream,
        context: &Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let broken = state.broken.clone();
        let Some(output) = state.outputs.get_mut(index(stream)) else {
            return Poll::Ready(Ok(()));
        };
        let before = buffer.remaining();
        while let Some(chunk) = output.chunks.front() {
            let rest = chunk.get(output.read..).unwrap_or_default();
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(rest.get(..count).unwrap_or_default());
            if count < rest.len() {
                output.read += count;
                break;
            }
            output.chunks.pop_front();
            output.read = 0;
        }
        let count = before - buffer.remaining();
        if count == 0 && before > 0 {
            return match broken {
                _ if output.ended => Poll::Ready(Ok(())),
                Some(broken) => Poll::Ready(Err(broken.to_io())),
                None => {
                    output.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        }
        output.unacknowledged = output
            .unacknowledged
            .saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        if output.unacknowledged >= CREDIT_STEP {
            self.outgoing.notify_one();
        }
        Poll::Ready(Ok(()))
    }

    /// Nobody reads this stream any more.
    pub(super) fn stop_reading(&self, stream: OutputStream) {
        let mut state = self.state();
        if let Some(output) = state.outputs.get_mut(index(stream)) {
            let left: usize = output.chunks.iter().map(Vec::len).sum();
            let left = u32::try_from(left - output.read.min(left)).unwrap_or(0);
            output.unacknowledged = output.unacknowledged.saturating_add(left);
            output.chunks = VecDeque::new();
            output.read = 0;
            output.unread = true;
        }
        drop(state);
        self.outgoing.notify_one();
        self.give_up_if_unwanted();
    }

    /// The command's main handle is gone.
    pub(super) fn drop_child(&self) {
        self.state().dropped = true;
        self.give_up_if_unwanted();
    }

    /// A command that has ended is kept until its output is read.
    fn give_up_if_unwanted(&self) {
        let state = self.state();
        let has_exited = matches!(*self.ended.borrow(), Some(Ok(_)));
        let mut outputs = state.outputs.iter();
        if state.dropped && !(has_exited && outputs.any(|output| !output.unread && !output.ended)) {
            self.given_up.notify_one();
        }
    }

    /// Waits until nobody wants to know more.
    pub(super) async fn given_up(&self) {
        self.given_up.notified().await;
    }

    pub(super) fn poll_write(
        &self,
        context: &Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state();
        if state.input.refused || state.input.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if let Some(broken) = &state.broken {
            return Poll::Ready(Err(broken.to_io()));
        }
        let input = &mut state.input;
        let window = usize::try_from(input.window).unwrap_or(usize::MAX);
        let taken = bytes.get(..window.min(bytes.len())).unwrap_or_default();
        if taken.is_empty() && !bytes.is_empty() {
            input.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        input.pending.extend_from_slice(taken);
        input.window -= u32::try_from(taken.len()).unwrap_or(input.window);
        drop(state);
        self.outgoing.notify_one();
        Poll::Ready(Ok(taken.len()))
    }

    /// Whether all that was written is on its way.
    pub(super) fn poll_flush(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state();
        let input = &mut state.input;
        if input.pending.is_empty() || input.refused {
            return Poll::Ready(Ok(()));
        }
        if let Some(broken) = &state.broken {
            return Poll::Ready(Err(broken.to_io()));
        }
        state.input.writer = Some(context.waker().clone());
        Poll::Pending
    }

    /// There is no more input.
    pub(super) fn close_input(&self) {
        self.state().input.closing = true;
        self.outgoing.notify_one();
    }
}

impl State {
    fn outgoing(&mut self) -> Result<Vec<u8>, ProtocolError> {
        let mut frames = Vec::new();
        while let Some(number) = self.signals.pop_front() {
            frames.extend(frame::message(&ExecControl::Signal(number))?);
        }
        if let Some(size) = self.size.take() {
            frames.extend(frame::message(&ExecControl::Resize(size))?);
        }
        for stream in [OutputStream::Stdout, OutputStream::Stderr] {
            let Some(output) = self.outputs.get_mut(index(stream)) else {
                continue;
            };
            if output.unacknowledged >= CREDIT_STEP && !output.ended {
                let bytes = std::mem::take(&mut output.unacknowledged);
                output.window += bytes;
                frames.extend(frame::message(&ExecControl::Credit(stream, bytes))?);
            }
        }
        let input = &mut self.input;
        for piece in std::mem::take(&mut input.pending).chunks(MAX_DATA_BYTES) {
            frames.extend(frame::frame(Kind::Data, piece));
        }
        wake(&mut input.writer);
        if input.closing && !input.closed {
            input.closed = true;
            frames.extend(frame::frame(Kind::End, &[]));
        }
        Ok(frames)
    }
}

impl Broken {
    fn to_io(&self) -> io::Error {
        match self {
            Self::Gone => io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the agent in the guest went away, or the command was dropped",
            ),
            Self::Protocol(error) => error.clone().into(),
            Self::Io(kind, text) => io::Error::new(*kind, text.clone()),
        }
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
