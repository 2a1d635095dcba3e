use capsa_core::{Error, VmExit, VmStatus};
use capsa_virtio::vsock::{ControlPorts, ControlSocket, HostPorts, ToDevice};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::VsockPorts;

/// The caller's side, and the device's.
struct Pair {
    ports: VsockPorts,
    device: ControlPorts,
    status: watch::Sender<VmStatus>,
}

fn pair() -> Pair {
    let (ours, theirs) = ControlSocket::pair().unwrap();
    let (status, watching) = watch::channel(VmStatus::Running);
    Pair {
        ports: VsockPorts::new(ours, watching).unwrap(),
        device: ControlPorts::new(theirs),
        status,
    }
}

impl Pair {
    /// The device's process ends.
    fn end(self) -> VsockPorts {
        drop(self.device);
        self.status
            .send_replace(VmStatus::Exited(VmExit::PoweredOff));
        self.ports
    }
}

#[tokio::test]
async fn port_listened_on_gets_the_guests_connection() {
    let mut pair = pair();
    let mut listener = pair.ports.listen(7).await.unwrap();

    let mut guest = UnixStream::from(pair.device.accept(7, 1000).unwrap());
    let mut host = listener.accept().await.unwrap();
    guest.write_all(b"hello").unwrap();
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).await.unwrap();

    assert_eq!(&bytes, b"hello");
}

#[tokio::test]
async fn connection_to_a_port_told_before_the_start_waits_for_its_listener() {
    let (ours, theirs) = ControlSocket::pair().unwrap();
    ours.send(&ToDevice::Listen { port: 7 }, None).unwrap();
    let (_status, watching) = watch::channel(VmStatus::Running);
    let mut device = ControlPorts::new(theirs);

    let mut guest = UnixStream::from(device.accept(7, 1000).unwrap());
    let ports = VsockPorts::new(ours, watching).unwrap();
    // The task that takes connections runs ahead of the listener.
    tokio::task::yield_now().await;
    let mut host = ports.listen(7).await.unwrap().accept().await.unwrap();
    guest.write_all(b"early").unwrap();
    let mut bytes = [0; 5];
    host.read_exact(&mut bytes).await.unwrap();

    assert_eq!(&bytes, b"early");
}

#[tokio::test]
async fn port_that_nobody_listens_on_is_refused() {
    let mut pair = pair();
    let _listener = pair.ports.listen(7).await.unwrap();

    assert!(pair.device.accept(8, 1000).is_none());
}

#[tokio::test]
async fn port_listened_on_twice_is_refused_until_it_is_given_back() {
    let mut pair = pair();
    let first = pair.ports.listen(7).await.unwrap();

    let second = pair.ports.listen(7).await;
    drop(first);
    let mut third = pair.ports.listen(7).await.unwrap();
    let guest = pair.device.accept(7, 1000);

    assert!(matches!(second.err(), Some(Error::InvalidState { .. })));
    assert!(guest.is_some());
    assert!(third.accept().await.is_ok());
}

#[tokio::test]
async fn call_that_the_guest_accepts_is_a_stream() {
    let mut pair = pair();
    let answering = async {
        let request = loop {
            match pair.device.next_request() {
                Some(request) => break request,
                None => tokio::task::yield_now().await,
            }
        };
        pair.device.answered(request.id, true);
        request
    };

    let (connected, request) = tokio::join!(pair.ports.connect(22), answering);
    let mut host = connected.unwrap();
    host.write_all(b"out").await.unwrap();
    host.shutdown().await.unwrap();
    let guest = UnixStream::from(request.stream);
    guest.set_nonblocking(false).unwrap();
    let mut bytes = Vec::new();
    (&guest).read_to_end(&mut bytes).unwrap();

    assert_eq!(request.guest_port, 22);
    assert_eq!(bytes, b"out");
}

#[tokio::test]
async fn call_that_the_guest_refuses_is_a_refused_connection() {
    let mut pair = pair();
    let answering = async {
        let request = loop {
            match pair.device.next_request() {
                Some(request) => break request,
                None => tokio::task::yield_now().await,
            }
        };
        pair.device.answered(request.id, false);
    };

    let (refused, ()) = tokio::join!(pair.ports.connect(22), answering);

    let Some(Error::Io { source, .. }) = refused.err() else {
        panic!("it was not refused")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn call_and_accept_after_the_end_tell_how_the_vm_ended() {
    let pair = pair();
    let mut listener = pair.ports.listen(7).await.unwrap();
    let ports = pair.end();

    let accepted = listener.accept().await;
    let connected = ports.connect(22).await;
    let listened = ports.listen(8).await;

    for error in [accepted.err(), connected.err(), listened.err()] {
        assert!(
            matches!(error, Some(Error::Ended(VmExit::PoweredOff))),
            "{error:?}"
        );
    }
}
