//! The streams of a running command, over its connection.
//!
//! One thread for each, which waits for whatever can go on. Of each stream at most one frame is on
//! the way in here: what the host does not take stays in the command's pipe.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use capsa_agent_protocol::ProtocolError;
use capsa_agent_protocol::exec::{ExecControl, ExecEvent, OutputStream, WINDOW_BYTES};
use capsa_agent_protocol::frame::{self, FrameBuffer, HEAD_BYTES, Head, Kind, MAX_DATA_BYTES};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};

use super::streams::{Streams, set_size};
use crate::children::Child;

const SIGKILL: i32 = 9;
/// Bytes of what the host sends that are read at once.
const READ_BYTES: usize = 32 << 10;

pub(super) struct Session {
    socket: Option<OwnedFd>,
    incoming: FrameBuffer,
    /// What is to be sent, and how much of it was.
    outgoing: Vec<u8>,
    sent: usize,
    child: Arc<Child>,
    exit_told: bool,
    input: Input,
    outputs: [Output; 2],
    /// The output that is served first, in turns.
    turn: usize,
    is_terminal: bool,
    /// Kept open until the command has ended.
    _terminal: Option<OwnedFd>,
    detached: bool,
    chunk: Vec<u8>,
    /// Pipes that others than the command still write.
    left_behind: Vec<OwnedFd>,
}

struct Input {
    stream: Option<OwnedFd>,
    pending: Vec<u8>,
    written: usize,
    /// Nothing comes behind what is pending.
    ended: bool,
    /// The host may send so much more.
    window: u32,
    /// So much was written and not told.
    unacknowledged: u32,
}

struct Output {
    name: OutputStream,
    kind: Kind,
    stream: Option<OwnedFd>,
    /// So much the host takes.
    window: u32,
    /// After the command's end: what it had written and was not read.
    left: Option<u64>,
    end_told: bool,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Socket,
    Exit,
    Input,
    Output(usize),
}

impl Session {
    pub(super) fn new(
        socket: OwnedFd,
        incoming: FrameBuffer,
        child: Arc<Child>,
        streams: Streams,
        detached: bool,
    ) -> Self {
        let output = |name, kind, stream| Output {
            name,
            kind,
            stream,
            window: WINDOW_BYTES,
            left: None,
            end_told: false,
        };
        Self {
            socket: Some(socket),
            incoming,
            outgoing: Vec::new(),
            sent: 0,
            child,
            exit_told: false,
            input: Input {
                stream: streams.stdin,
                pending: Vec::new(),
                written: 0,
                ended: false,
                window: WINDOW_BYTES,
                unacknowledged: 0,
            },
            outputs: [
                output(OutputStream::Stdout, Kind::Data, Some(streams.stdout)),
                output(OutputStream::Stderr, Kind::ErrorData, streams.stderr),
            ],
            turn: 0,
            is_terminal: streams.is_terminal,
            _terminal: streams.terminal,
            detached,
            chunk: vec![0; READ_BYTES],
            left_behind: Vec::new(),
        }
    }

    /// The host went before anything was carried.
    pub(super) fn abandon(mut self) -> io::Result<Vec<OwnedFd>> {
        self.lose_host();
        self.run()
    }

    /// Carries everything until the command has ended and its output is delivered, or until the host
    /// is gone, with which the command ends unless it is detached. Gives the pipes that are to be
    /// [drained](drain).
    pub(super) fn run(mut self) -> io::Result<Vec<OwnedFd>> {
        if let Some(socket) = &self.socket {
            fcntl_setfl(socket, fcntl_getfl(socket)? | OFlags::NONBLOCK)?;
        }
        self.take_frames();
        loop {
            self.tell_ends();
            self.flush();
            if self.is_over() {
                return Ok(self.left_behind);
            }
            for source in self.wait()? {
                self.serve(source);
            }
        }
    }

    fn is_over(&self) -> bool {
        let all_told = self.outputs.iter().all(|output| output.end_told);
        match &self.socket {
            Some(_) => self.exit_told && all_told && self.outgoing.is_empty(),
            // The command was killed, or is on its own and drained until it ends.
            None => !self.detached || self.exit_told,
        }
    }

    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut entries = Vec::with_capacity(5);
        let mut sources = Vec::with_capacity(5);
        let mut add = |source, stream, flags| {
            sources.push(source);
            entries.push(PollFd::from_borrowed_fd(stream, flags));
        };
        if let Some(socket) = &self.socket {
            let mut flags = PollFlags::IN;
            flags.set(PollFlags::OUT, !self.outgoing.is_empty());
            add(Source::Socket, socket.as_fd(), flags);
        }
        if !self.exit_told {
            add(Source::Exit, self.child.ended(), PollFlags::IN);
        }
        if let Some(input) = &self.input.stream {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::OUT, !self.input.pending.is_empty());
            // A terminal's end is seen where its output is read.
            if !self.is_terminal || !flags.is_empty() {
                add(Source::Input, input.as_fd(), flags);
            }
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(stream) = &output.stream
                && self.may_read(output)
            {
                add(Source::Output(index), stream.as_fd(), PollFlags::IN);
            }
        }
        loop {
            match poll(&mut entries, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ready = entries.iter().zip(sources);
        let ready = ready.filter(|(entry, _)| !entry.revents().is_empty());
        let mut ready: Vec<Source> = ready.map(|(_, source)| source).collect();
        if self.turn == 1 {
            ready.reverse();
        }
        Ok(ready)
    }

    fn may_read(&self, output: &Output) -> bool {
        self.socket.is_none() || (self.outgoing.is_empty() && output.window > 0)
    }

    fn serve(&mut self, source: Source) {
        match source {
            Source::Socket => self.receive(),
            Source::Exit => self.tell_exit(),
            Source::Input => self.write_or_close_input(),
            Source::Output(index) => self.read_output(index),
        }
    }

    /// Reads what the host sent.
    fn receive(&mut self) {
        let Some(socket) = &self.socket else {
            return;
        };
        match rustix::io::read(socket, self.chunk.as_mut_slice()) {
            Ok(0) => self.lose_host(),
            Ok(count) => {
                self.incoming
                    .push(self.chunk.get(..count).unwrap_or_default());
                self.take_frames();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.lose_host(),
        }
        // What the host takes again can go out.
        self.flush();
    }

    fn take_frames(&mut self) {
        let mut incoming = std::mem::replace(&mut self.incoming, FrameBuffer::of_host());
        loop {
            let taken = match incoming.next_frame() {
                Ok(Some((kind, content))) => self.take(kind, content),
                Ok(None) => break,
                Err(error) => Err(error),
            };
            if taken.is_err() {
                // It is not a host of ours.
                self.lose_host();
                return;
            }
        }
        self.incoming = incoming;
        self.write_input();
    }

    fn take(&mut self, kind: Kind, content: &[u8]) -> Result<(), ProtocolError> {
        match kind {
            Kind::Data => {
                let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
                self.input.window = self
                    .input
                    .window
                    .checked_sub(length)
                    .ok_or(ProtocolError::Unexpected("more input than was asked for"))?;
                if self.input.stream.is_some() && !self.input.ended {
                    // What was written goes: it would pile up while there is always more.
                    self.input.pending.drain(..self.input.written);
                    self.input.written = 0;
                    self.input.pending.extend_from_slice(content);
                }
            }
            Kind::End => {
                if self.is_terminal {
                    self.end_terminal_input();
                }
                self.input.ended = true;
            }
            Kind::Message => match frame::decode(content)? {
                ExecControl::Signal(number) => self.child.signal_group(number),
                ExecControl::Resize(size) => {
                    if let (
                        true,
                        [
                            Output {
                                stream: Some(terminal),
                                ..
                            },
                            _,
                        ],
                    ) = (self.is_terminal, &self.outputs)
                    {
                        // A terminal that is gone has no size.
                        let _ = set_size(terminal, size);
                    }
                }
                ExecControl::Credit(name, bytes) => {
                    for output in &mut self.outputs {
                        if output.name == name {
                            output.window = output.window.saturating_add(bytes);
                        }
                    }
                }
            },
            Kind::ErrorData => {
                return Err(ProtocolError::Unexpected("standard error from the host"));
            }
        }
        Ok(())
    }

    /// A terminal's input ends as when somebody types the character for it.
    fn end_terminal_input(&mut self) {
        let modes = self.input.stream.as_ref().map(tcgetattr);
        if let Some(Ok(modes)) = modes
            && modes.local_modes.contains(LocalModes::ICANON)
        {
            let end = modes.special_codes[SpecialCodeIndex::VEOF];
            self.input.pending.push(end);
        }
    }

    fn write_or_close_input(&mut self) {
        self.write_input();
        // Woken without anything to write: the command has closed its end.
        if let Some(stream) = &self.input.stream
            && !self.is_terminal
            && state(stream, PollFlags::empty()).intersects(PollFlags::ERR | PollFlags::HUP)
        {
            self.refuse_input();
        }
    }

    fn write_input(&mut self) {
        let Some(stream) = &self.input.stream else {
            self.input.pending = Vec::new();
            return;
        };
        while let Some(rest) = self.input.pending.get(self.input.written..)
            && !rest.is_empty()
        {
            match rustix::io::write(stream, rest) {
                Ok(count) => {
                    self.input.written += count;
                    let count = u32::try_from(count).unwrap_or(u32::MAX);
                    self.input.unacknowledged = self.input.unacknowledged.saturating_add(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.refuse_input(),
            }
        }
        if self.input.written == self.input.pending.len() {
            self.input.pending.clear();
            self.input.written = 0;
            if self.input.ended {
                self.input.stream = None;
                return;
            }
        }
        let window = WINDOW_BYTES / 4;
        if self.input.unacknowledged >= window {
            let bytes = std::mem::take(&mut self.input.unacknowledged);
            self.input.window = self.input.window.saturating_add(bytes);
            self.tell(&ExecEvent::StdinCredit(bytes));
        }
    }

    fn refuse_input(&mut self) {
        self.input.stream = None;
        self.input.pending = Vec::new();
        self.tell(&ExecEvent::StdinClosed);
    }

    fn read_output(&mut self, index: usize) {
        let drained = self.socket.is_none();
        if !drained && !self.outgoing.is_empty() {
            return;
        }
        self.turn = 1 - self.turn;
        let Some(output) = self.outputs.get_mut(index) else {
            return;
        };
        let Some(stream) = &output.stream else {
            return;
        };
        let mut room = MAX_DATA_BYTES;
        if !drained {
            room = room.min(usize::try_from(output.window).unwrap_or(room));
        }
        if let Some(left) = output.left {
            room = room.min(usize::try_from(left).unwrap_or(room));
        }
        self.outgoing.resize(HEAD_BYTES + room, 0);
        let content = self.outgoing.get_mut(HEAD_BYTES..).unwrap_or_default();
        let length = match rustix::io::read(stream, content) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => {
                self.outgoing.clear();
                return;
            }
            // A terminal without programs.
            Err(_) => 0,
        };
        self.outgoing.truncate(HEAD_BYTES + length);
        if length == 0 || drained {
            self.outgoing.clear();
        }
        if length == 0 {
            output.stream = None;
            return;
        }
        let length_told = length as u64;
        output.left = output.left.map(|left| left.saturating_sub(length_told));
        if !drained {
            output.window -= u32::try_from(length).unwrap_or(output.window);
            let kind = output.kind;
            if let Some(head) = self.outgoing.first_chunk_mut() {
                *head = Head { kind, length }.encode();
            }
            self.flush();
        }
    }

    /// The command itself has ended: what it has written still comes, what others write does not.
    fn tell_exit(&mut self) {
        let Some(status) = self.child.status() else {
            return;
        };
        self.exit_told = true;
        self.input.stream = None;
        for output in &mut self.outputs {
            if let Some(stream) = &output.stream {
                output.left = Some(buffered(stream));
            }
        }
        self.tell(&ExecEvent::Exited(status));
    }

    /// Tells the ends of the outputs that have ended.
    fn tell_ends(&mut self) {
        for index in 0..self.outputs.len() {
            let Some(output) = self.outputs.get_mut(index) else {
                return;
            };
            if output.left == Some(0)
                && let Some(stream) = output.stream.take()
                && !self.is_terminal
                && !state(&stream, PollFlags::empty()).contains(PollFlags::HUP)
            {
                self.left_behind.push(stream);
            }
            if output.stream.is_none() && !output.end_told {
                output.end_told = true;
                let name = output.name;
                self.tell(&ExecEvent::OutputEnd(name));
            }
        }
    }

    fn tell(&mut self, event: &ExecEvent) {
        if self.socket.is_some()
            && let Ok(frame) = frame::message(event)
        {
            self.outgoing.extend(frame);
        }
    }

    fn flush(&mut self) {
        let Some(socket) = &self.socket else {
            return;
        };
        while let Some(rest) = self.outgoing.get(self.sent..)
            && !rest.is_empty()
        {
            match rustix::io::write(socket, rest) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.lose_host(),
            }
        }
        self.outgoing.clear();
        self.sent = 0;
    }

    /// The host is gone: the command ends with it, or goes on alone.
    fn lose_host(&mut self) {
        self.socket = None;
        self.outgoing = Vec::new();
        self.sent = 0;
        self.input.ended = true;
        if !self.detached {
            self.child.signal_group(SIGKILL);
        }
        self.write_input();
    }
}

/// How many bytes can be read at once.
fn buffered(stream: &OwnedFd) -> u64 {
    // A terminal passes on what is on its way when it is asked whether there is anything.
    state(stream, PollFlags::IN);
    ioctl_fionread(stream).unwrap_or(0)
}

/// What can be done with a stream now.
fn state(stream: &OwnedFd, flags: PollFlags) -> PollFlags {
    let mut entry = [PollFd::new(stream, flags)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut entry, Some(&now)) {
        Ok(_) => entry.map(|entry| entry.revents())[0],
        Err(_) => PollFlags::empty(),
    }
}

/// Reads what processes write that their command left behind, so that they live on, until the last
/// of them has ended or closed it.
pub(super) fn drain(mut streams: Vec<OwnedFd>) {
    let mut thrown_away = [0; 4096];
    while !streams.is_empty() {
        let mut entries: Vec<_> = streams
            .iter()
            .map(|stream| PollFd::new(stream, PollFlags::IN))
            .collect();
        match poll(&mut entries, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
        streams.retain(|stream| !matches!(rustix::io::read(stream, &mut thrown_away), Ok(0)));
    }
}
