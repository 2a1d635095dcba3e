//! The library's side of the device process.

use std::os::fd::BorrowedFd;
use std::path::Path;

use capsa_core::{BootPhase, Error, Result, Warning};
use capsa_process::{ChildEnd, ControlSocket, Supervised};

use super::child::DEVICES;
use super::protocol::{self, Event};

/// A device process that was started. Dropping it ends the process.
pub(crate) struct DeviceProcess {
    socket: ControlSocket,
    process: Supervised,
    buffer: Vec<u8>,
}

impl DeviceProcess {
    /// Starts it with its first message. Must be called in a runtime, on a thread that may block.
    ///
    /// # Errors
    /// Names what could not be started. Nothing is left behind.
    pub(super) fn start(
        executable: &Path,
        message: &[u8],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Self> {
        let (socket, theirs) = ControlSocket::pair()
            .map_err(|error| Error::io("cannot make the device process's socket", error))?;
        capsa_process::send(&socket, message, descriptors)
            .map_err(|error| start_error(error.to_string()))?;
        let process = DEVICES
            .start(executable, theirs)
            .map_err(|error| start_error(error.to_string()))?;
        Ok(Self {
            socket,
            process,
            buffer: Vec::new(),
        })
    }

    /// Waits until every device can be connected to; gives what the user should know.
    ///
    /// # Errors
    /// Which device could not be made, and why.
    pub(crate) async fn ready(&mut self) -> Result<Vec<Warning>> {
        let mut warnings = Vec::new();
        loop {
            match self.next_event().await {
                Ok(Event::Ready) => return Ok(warnings),
                Ok(Event::Warning(text)) => {
                    warnings.push(Warning(format!("QEMU's device process: {text}")));
                }
                Ok(Event::Failed { reason }) | Err(reason) => return Err(start_error(reason)),
            }
        }
    }

    /// Waits until a device, or the whole process, cannot go on, and says why.
    pub(crate) async fn failed(&mut self) -> String {
        loop {
            match self.next_event().await {
                Ok(Event::Ready | Event::Warning(_)) => {}
                Ok(Event::Failed { reason }) | Err(reason) => return reason,
            }
        }
    }

    /// Ends it, once QEMU has gone: every device writes down what it has.
    pub(crate) async fn finish(self) -> ChildEnd {
        let Self {
            socket, process, ..
        } = self;
        drop(socket);
        process.ended().await
    }

    /// The next event; an error where none will come.
    async fn next_event(&mut self) -> Result<Event, String> {
        match self.socket.receive(&mut self.buffer).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                let end = self.process.ended().await;
                let words = end.last_words.trim();
                let said = if words.is_empty() { "" } else { ": " };
                return Err(format!("the device process {}{said}{words}", end.reason));
            }
            Err(error) => return Err(format!("the device process cannot be heard: {error}")),
        }
        protocol::decode(&self.buffer).map_err(|error| error.to_string())
    }
}

fn start_error(reason: String) -> Error {
    Error::start(
        BootPhase::Monitor,
        reason,
        "change the device that it names, or see how many processes and descriptors you may have \
         (`ulimit -a`)",
    )
}
