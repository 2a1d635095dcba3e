//! The network's end of a control socket, for whoever stands between a network and several callers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use tokio::io::Interest;
use tokio::net::UnixStream;

use super::codec::{Decoder, encode};
use super::{Event, FromNetwork, Reply, Request, ToNetwork};

/// What a [`ControlClient`](crate::ControlClient) asked.
#[derive(Debug)]
pub struct ControlRequest {
    /// By which the reply is told from others.
    pub id: u64,
    /// What.
    pub request: Request,
    /// The descriptor that belongs to it.
    pub descriptor: Option<OwnedFd>,
}

/// Takes what a [`ControlClient`](crate::ControlClient) asks, and replies to it.
#[derive(Debug)]
pub struct ControlServer {
    stream: UnixStream,
    decoder: Decoder,
}

impl ControlServer {
    /// Takes the other end of a client's socket. To be called on a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be used with the runtime.
    pub fn new(stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            decoder: Decoder::default(),
        })
    }

    /// The next request; `None` where the client is gone. Nothing is lost when this is cancelled.
    ///
    /// # Errors
    /// Those of the socket, and [`io::ErrorKind::InvalidData`] for what is no request: the socket is
    /// of no use any more then.
    pub async fn next(&mut self) -> io::Result<Option<ControlRequest>> {
        loop {
            if let Some(message) = self.decoder.next::<ToNetwork>()? {
                let descriptor = match message.descriptor {
                    true => self.decoder.take_fd(),
                    false => None,
                };
                return Ok(Some(ControlRequest {
                    id: message.id,
                    request: message.request,
                    descriptor,
                }));
            }
            let (stream, decoder) = (&self.stream, &mut self.decoder);
            let more = stream
                .async_io(Interest::READABLE, || decoder.read(stream.as_fd()))
                .await?;
            if !more {
                return Ok(None);
            }
        }
    }

    /// Replies to a request. A client that does not read holds this up.
    ///
    /// # Errors
    /// Those of the socket. It is of no use any more then, nor when this was cancelled.
    pub async fn reply(&mut self, id: u64, reply: Reply) -> io::Result<()> {
        self.send(&FromNetwork::Reply(id, Box::new(reply))).await
    }

    /// Tells the client something that it did not ask for; see [`reply`](Self::reply).
    ///
    /// # Errors
    /// As there.
    pub async fn event(&mut self, event: Event) -> io::Result<()> {
        self.send(&FromNetwork::Event(event)).await
    }

    async fn send(&mut self, message: &FromNetwork) -> io::Result<()> {
        use tokio::io::AsyncWriteExt;
        self.stream.write_all(&encode(message)?).await
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::send_with_fds;
    use crate::{ControlClient, ForwardId, FrameFormat, GuestConfig, GuestName};

    #[tokio::test]
    async fn requests_keep_their_own_descriptors_though_they_are_read_together() {
        // Arrange: both are in the socket before anything is read.
        let (theirs, ours) = StdStream::pair().unwrap();
        let mut server = ControlServer::new(ours).unwrap();
        let name: GuestName = "one".parse().unwrap();
        let guest = Request::AddGuest(Box::new(GuestConfig::new(name.clone())));
        let connect = Request::ConnectGuest(name, FrameFormat::Datagram);
        let file = std::fs::File::open("/dev/null").unwrap();
        for (id, request, fds) in [(1, guest, &[][..]), (2, connect, &[file.as_fd()][..])] {
            let message = ToNetwork {
                id,
                descriptor: !fds.is_empty(),
                request,
            };
            send_with_fds(theirs.as_fd(), &encode(&message).unwrap(), fds).unwrap();
        }

        // Act
        let first = server.next().await.unwrap().unwrap();
        let second = server.next().await.unwrap().unwrap();

        // Assert
        assert_eq!((first.id, first.descriptor.is_some()), (1, false));
        assert_eq!((second.id, second.descriptor.is_some()), (2, true));
    }

    #[tokio::test]
    async fn what_is_no_request_is_an_error_and_the_clients_end_is_the_end() {
        let (mut theirs, ours) = StdStream::pair().unwrap();
        let mut server = ControlServer::new(ours).unwrap();
        theirs.write_all(&[0xff; 64]).unwrap();
        assert_eq!(
            server.next().await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );

        let (theirs, ours) = StdStream::pair().unwrap();
        let mut server = ControlServer::new(ours).unwrap();
        drop(theirs);
        assert!(server.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn client_is_told_when_its_network_is_gone() {
        let (theirs, ours) = StdStream::pair().unwrap();
        let mut server = ControlServer::new(ours).unwrap();
        let client = ControlClient::new(theirs).unwrap();
        let ended = client.ended();

        let asked = tokio::spawn(async move { client.remove_forward(ForwardId(1)).await });
        let _request = server.next().await.unwrap().unwrap();
        drop(server);

        ended.await;
        assert!(asked.await.unwrap().is_err());
    }
}
