//! The QEMU Machine Protocol: JSON objects, a line each (`docs/interop/qmp-spec` of QEMU).

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::lines::Lines;

/// The longest message in bytes. The longest that we ask for have about 100 KiB.
const MESSAGE_BYTES: usize = 1 << 20;
/// Events that came while an answer was waited for. There is no reason for more than a few.
const MOST_EVENTS: usize = 1024;

/// Why a command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// QEMU said no.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        command: &'static str,
        reason: String,
    },
    /// QEMU closed the connection.
    #[error("QEMU closed its control connection")]
    Closed,
    /// Something came that is not QMP.
    #[error("QEMU sent something that is not QMP: {0}")]
    Malformed(String),
    #[error("QEMU's control connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It is about to end, with its word for the reason, such as `guest-shutdown`.
    Shutdown(String),
    /// The guest told of a panic through the panic device.
    GuestPanicked,
    /// CPUs are held.
    Stop,
    /// CPUs go on.
    Resume,
    /// Any other.
    Other,
}

/// QEMU's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// The 7 of 7.2.0.
    pub major: u32,
    /// The 2 of 7.2.0.
    pub minor: u32,
    /// The 0 of 7.2.0.
    pub micro: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[derive(Debug)]
enum Message {
    Greeting(Version),
    Event(Event),
    Return(Value),
    Error(String),
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let malformed = || {
        let start = String::from_utf8_lossy(&line[..line.len().min(200)]);
        QmpError::Malformed(start.into_owned())
    };
    let message: Value = serde_json::from_slice(line).map_err(|_| malformed())?;
    if let Some(name) = message.get("event").and_then(Value::as_str) {
        return Ok(Message::Event(event(name, message.get("data"))));
    }
    if let Some(value) = message.get("return") {
        return Ok(Message::Return(value.clone()));
    }
    if let Some(error) = message.get("error") {
        let reason = error.get("desc").and_then(Value::as_str);
        return Ok(Message::Error(
            reason.unwrap_or("no reason given").to_owned(),
        ));
    }
    message
        .pointer("/QMP/version/qemu")
        .and_then(|version| Version::deserialize(version).ok())
        .map(Message::Greeting)
        .ok_or_else(malformed)
}

fn event(name: &str, data: Option<&Value>) -> Event {
    match name {
        "SHUTDOWN" => {
            let reason = data.and_then(|data| data.get("reason"));
            let reason = reason.and_then(Value::as_str).unwrap_or("unknown");
            Event::Shutdown(reason.to_owned())
        }
        "GUEST_PANICKED" => Event::GuestPanicked,
        "STOP" => Event::Stop,
        "RESUME" => Event::Resume,
        _ => Event::Other,
    }
}

/// A connection to QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    lines: Lines<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    events: VecDeque<Event>,
}

impl Qmp {
    pub(crate) fn new(socket: StdUnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (reader, writer) = UnixStream::from_std(socket)?.into_split();
        Ok(Self {
            lines: Lines::new(reader, MESSAGE_BYTES),
            writer,
            events: VecDeque::new(),
        })
    }

    /// Waits for QEMU's greeting and leaves the mode in which nothing else is understood.
    pub(crate) async fn negotiate(&mut self) -> Result<Version, QmpError> {
        let version = loop {
            if let Message::Greeting(version) = self.read().await? {
                break version;
            }
        };
        self.execute("qmp_capabilities", Value::Null).await?;
        Ok(version)
    }

    /// Carries out a command; `arguments` is null for none. Events that come meanwhile are kept
    /// for [`event`](Self::event).
    pub(crate) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        let mut message = json!({ "execute": command });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut line = message.to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes()).await?;
        loop {
            match self.read().await? {
                Message::Return(value) => return Ok(value),
                Message::Error(reason) => return Err(QmpError::Refused { command, reason }),
                Message::Greeting(_) => {}
                Message::Event(event) => {
                    if self.events.len() < MOST_EVENTS {
                        self.events.push_back(event);
                    }
                }
            }
        }
    }

    /// An event that came while an answer was waited for.
    pub(crate) fn kept_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next event. Nothing is lost when this is cancelled.
    pub(crate) async fn event(&mut self) -> Result<Event, QmpError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Message::Event(event) = self.read().await? {
                return Ok(event);
            }
        }
    }

    async fn read(&mut self) -> Result<Message, QmpError> {
        loop {
            let line = match self.lines.next().await {
                Ok(line) => line.ok_or(QmpError::Closed)?,
                // A process that was killed had not read all that was sent to it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(QmpError::Closed);
                }
                Err(error) => return Err(error.into()),
            };
            if !line.trim_ascii().is_empty() {
                return parse(&line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greeting_tells_the_version() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 18, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}"#;
        match parse(line).unwrap() {
            Message::Greeting(version) => assert_eq!(version.to_string(), "7.2.18"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_shutdown_tells_its_reason() {
        let line = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}"#;
        match parse(line).unwrap() {
            Message::Event(Event::Shutdown(reason)) => assert_eq!(reason, "guest-reset"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_not_qmp_is_an_error_and_no_panic() {
        for line in [&b"hello"[..], b"{}", b"[1]", b"\xff\xfe", b"{\"QMP\": 3}"] {
            assert!(matches!(parse(line), Err(QmpError::Malformed(_))));
        }
    }

    #[tokio::test]
    async fn connection_of_a_process_that_ended_with_a_command_unread_is_closed() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        qmp.writer
            .write_all(b"{\"execute\": \"stop\"}\n")
            .await
            .unwrap();
        drop(theirs);

        let event = qmp.event().await;

        assert!(matches!(event, Err(QmpError::Closed)), "{event:?}");
    }

    #[tokio::test]
    async fn events_before_an_answer_are_kept() {
        // Arrange
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let mut qmp = Qmp::new(ours).unwrap();
        let answers = b"{\"event\": \"STOP\"}\n{\"return\": {\"a\": 1}}\n{\"event\": \"RESUME\"}\n";
        io::Write::write_all(&mut &theirs, answers).unwrap();

        // Act
        let answer = qmp.execute("stop", Value::Null).await.unwrap();
        let events = [qmp.event().await.unwrap(), qmp.event().await.unwrap()];

        // Assert
        assert_eq!(answer, json!({"a": 1}));
        assert_eq!(events, [Event::Stop, Event::Resume]);
    }
}
