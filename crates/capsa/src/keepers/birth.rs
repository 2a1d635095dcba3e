//! The start of a keeper, and what it and its maker say to each other meanwhile.

use std::error::Error as StdError;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use capsa_core::{BootPhase, Error, Result};
use capsa_process::{ControlSocket, Role};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::frames;
use super::wire_error::WireError;

/// What a keeper tells its maker of the start.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Birth<T> {
    /// What it keeps is there.
    Alive(T),
    /// It is not, and the keeper is gone.
    Failed(WireError),
}

/// Starts a keeper by its role, whose first message is `beginning`, hands it `start`, and waits until
/// it says that what it keeps is there. The stream on which they spoke comes back too.
///
/// # Errors
/// [`Error::Start`] where there can be no such process, and what the keeper itself failed with.
/// Dropping the future lets the keeper know that nobody waits for it.
pub(crate) async fn begin<S: Serialize, T: serde::de::DeserializeOwned>(
    role: &Role,
    beginning: &[u8],
    start: &S,
) -> Result<(T, UnixStream)> {
    let cannot = |error: &dyn StdError| {
        Error::start(BootPhase::Monitor, error.to_string(), "see the message")
    };
    let (mut ours, theirs) = UnixStream::pair().map_err(|error| cannot(&error))?;
    let theirs = theirs.into_std().map_err(|error| cannot(&error))?;
    let theirs = OwnedFd::from(theirs);
    let (socket, their_socket) = ControlSocket::pair().map_err(|error| cannot(&error))?;
    socket
        .send(beginning, &[theirs.as_fd()])
        .await
        .map_err(|error| cannot(&error))?;
    drop(theirs);
    role.start_independent(&capsa_process::own_executable(), their_socket)
        .map_err(|error| cannot(&error))?;
    let sent = frames::send(&mut ours, start).await;
    sent.map_err(|error| cannot(&error))?;
    match frames::receive(&mut ours)
        .await
        .map_err(|error| cannot(&error))?
    {
        Some(Birth::Alive(told)) => Ok((told, ours)),
        Some(Birth::Failed(error)) => Err(error.into()),
        None => Err(Error::start(
            BootPhase::Monitor,
            "the process that was to look after it ended",
            "see the message",
        )),
    }
}

/// The keeper's end of the stream, from the socket that it was started with.
///
/// # Errors
/// Where the first message is not the one of a keeper.
pub(crate) fn received(socket: OwnedFd) -> std::result::Result<StdUnixStream, Box<dyn StdError>> {
    let mut buffer = Vec::new();
    let mut descriptors = capsa_process::receive(&socket, &mut buffer)?.unwrap_or_default();
    let stream = StdUnixStream::from(descriptors.pop().ok_or("no stream came with the message")?);
    stream.set_nonblocking(true)?;
    Ok(stream)
}
