//! The connection to the host's control port.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::panic;
use std::sync::{Mutex, PoisonError};

use capsa_agent_protocol::control::ControlEvent;
use capsa_agent_protocol::frame::{self, FrameBuffer, Kind};
use capsa_agent_protocol::{ProtocolError, Request, preamble};

use crate::{report, serve};

static TO_HOST: Mutex<Option<File>> = Mutex::new(None);

/// Says that the agent is there.
pub(crate) fn greet(socket: OwnedFd) -> io::Result<File> {
    let from_host = File::from(socket);
    let mut to_host = from_host.try_clone()?;
    to_host.write_all(&preamble::ours())?;
    to_host.write_all(&frame::message(&ControlEvent::Hello(serve::info()))?)?;
    *TO_HOST.lock().unwrap_or_else(PoisonError::into_inner) = Some(to_host);
    Ok(from_host)
}

/// Takes what the host asks for until it closes the connection.
pub(crate) fn serve(mut from_host: File) -> io::Result<()> {
    let mut theirs = [0; preamble::BYTES];
    from_host.read_exact(&mut theirs)?;
    preamble::check(&theirs)?;
    let mut buffer = FrameBuffer::of_host();
    let mut chunk = [0; 4096];
    loop {
        while let Some((kind, content)) = buffer.next_frame()? {
            if kind != Kind::Message {
                return Err(ProtocolError::Unexpected("data for the agent itself").into());
            }
            let Request::Boot(config) = frame::decode(content)? else {
                return Err(ProtocolError::Unexpected("this request here").into());
            };
            tell(&match serve::boot(*config) {
                Ok(report) => ControlEvent::Booted(report),
                Err(failure) => ControlEvent::BootFailed(failure),
            });
        }
        match from_host.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => buffer.push(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Tells the host something, if it listens.
pub(crate) fn tell(event: &ControlEvent) {
    // Whoever holds it may have panicked: then it is not waited for.
    let Ok(mut to_host) = TO_HOST.try_lock() else {
        return;
    };
    let sent = match (to_host.as_mut(), frame::message(event)) {
        (Some(to_host), Ok(frame)) => to_host.write_all(&frame),
        _ => Ok(()),
    };
    if sent.is_err() {
        *to_host = None;
    }
}

/// Panics are told on the console and to the host.
pub(crate) fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        report::problem(panic);
        tell(&ControlEvent::Panicked(panic.to_string()));
    }));
}
