//! The task that carries a command's streams over its connection.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::state::{Broken, Shared};
use crate::AgentError;
use crate::connection::{Connection, FrameReader};

const DOING: &str = super::DOING;

pub(super) async fn run(connection: Connection, shared: Arc<Shared>) {
    let Connection { stream, reader, .. } = connection;
    let (from_agent, to_agent) = tokio::io::split(stream);
    let broken = tokio::select! {
        result = receive(reader, from_agent, &shared) => result.err(),
        broken = send(to_agent, &shared) => Some(broken),
        () = shared.given_up() => None,
    };
    shared.fail(broken.unwrap_or(Broken::Gone));
}

/// Ends well once everything has come.
async fn receive(
    mut reader: FrameReader,
    mut stream: impl AsyncRead + Unpin,
    shared: &Shared,
) -> Result<(), Broken> {
    loop {
        let Some((kind, content)) = reader.next(&mut stream, DOING).await? else {
            return Err(Broken::Gone);
        };
        if shared.take(kind, content)? {
            return Ok(());
        }
    }
}

/// Ends only where that fails.
async fn send(mut stream: impl AsyncWrite + Unpin, shared: &Shared) -> Broken {
    loop {
        let frames = match shared.outgoing().await {
            Ok(frames) => frames,
            Err(error) => return error.into(),
        };
        if let Err(error) = stream.write_all(&frames).await {
            return match AgentError::connection(DOING, error) {
                // What the agent sent before it went is still to be read.
                AgentError::Gone { .. } => std::future::pending().await,
                error => error.into(),
            };
        }
    }
}
