use capsa_agent_protocol::boot::{BootConfig, BootReport};
use capsa_agent_protocol::control::ControlEvent;
use capsa_agent_protocol::frame::{self, Kind};
use capsa_agent_protocol::{AgentInfo, ProtocolError, Request, preamble};
use capsa_core::ByteStream;
use tokio::io::AsyncWriteExt;

use crate::connection::FrameReader;
use crate::{AgentError, Result};

const DOING: &str = "waiting for the guest's agent";

/// The connection that the agent makes when the guest has started: to vsock port
/// [`CONTROL_PORT`](crate::CONTROL_PORT) of the host.
///
/// It may be dropped once the guest is set up: nothing depends on it then.
pub struct Control {
    stream: Box<dyn ByteStream>,
    reader: FrameReader,
    info: AgentInfo,
}

impl Control {
    /// Takes a connection that came in, and waits for the agent to say what it is.
    ///
    /// # Errors
    /// [`AgentError::Protocol`] for an agent of another version.
    pub async fn accept(mut stream: Box<dyn ByteStream>) -> Result<Self> {
        let mut reader = FrameReader::new();
        stream
            .write_all(&preamble::ours())
            .await
            .map_err(|error| AgentError::connection(DOING, error))?;
        match next(&mut reader, &mut stream).await? {
            Some(ControlEvent::Hello(info)) => Ok(Self {
                stream,
                reader,
                info,
            }),
            Some(_) => Err(ProtocolError::Unexpected("an event before the agent's first").into()),
            None => Err(AgentError::Gone { doing: DOING }),
        }
    }

    /// What the agent is.
    pub fn info(&self) -> &AgentInfo {
        &self.info
    }

    /// Sets the guest up: the one boot message.
    ///
    /// # Errors
    /// [`AgentError::Refused`] where the guest cannot do without what it could not set up.
    pub async fn boot(&mut self, config: BootConfig) -> Result<BootReport> {
        let request = frame::message(&Request::Boot(Box::new(config)))?;
        self.stream
            .write_all(&request)
            .await
            .map_err(|error| AgentError::connection(DOING, error))?;
        match self.event().await? {
            Some(ControlEvent::Booted(report)) => Ok(report),
            Some(ControlEvent::BootFailed(failure)) => {
                Err(AgentError::refused("setting up the guest", failure))
            }
            Some(ControlEvent::Panicked(message)) => Err(AgentError::refused(
                "setting up the guest",
                crate::Failure::new(
                    crate::FailureKind::System,
                    format!("the agent failed: {message}"),
                ),
            )),
            Some(_) => Err(ProtocolError::Unexpected("an event before the guest is set up").into()),
            None => Err(AgentError::Gone { doing: DOING }),
        }
    }

    /// What the agent tells next; `None` once it, or its guest, has ended. The future may be dropped.
    ///
    /// # Errors
    /// [`AgentError::Protocol`] and [`AgentError::Connection`].
    pub async fn event(&mut self) -> Result<Option<ControlEvent>> {
        next(&mut self.reader, &mut self.stream).await
    }
}

async fn next(
    reader: &mut FrameReader,
    stream: &mut Box<dyn ByteStream>,
) -> Result<Option<ControlEvent>> {
    match reader.next(stream, DOING).await? {
        Some((Kind::Message, content)) => Ok(Some(frame::decode(&content)?)),
        Some(_) => Err(ProtocolError::Unexpected("data among events").into()),
        None => Ok(None),
    }
}
