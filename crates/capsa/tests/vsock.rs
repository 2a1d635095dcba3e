//! Streams between host and guest.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::io::ErrorKind;
use std::sync::Arc;

use capsa::test_utils::{self, LIMIT, Shell};
use capsa::{Error, RESERVED_VSOCK_PORTS, VmHandle, VsockSpec, VsockStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// Connections at once.
const CONNECTIONS: usize = 200;
/// Bytes that go out and come back.
const BULK: usize = 16 << 20;

async fn shell() -> Shell {
    let builder = test_utils::vm().await.vsock(VsockSpec::default());
    Shell::start(builder).await
}

/// Has `program` answer on a port of the guest; on return it listens.
async fn serve(shell: &mut Shell, port: u32, program: &str) {
    let fifo = format!("/tmp/listening{port}");
    shell
        .run(&format!(
            "mkfifo {fifo} && {{ vsock listen {port} {program} > {fifo} & }} && read line < {fifo} \
             && test \"$line\" = listening"
        ))
        .await;
}

async fn read_all(stream: &mut VsockStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    timeout(LIMIT, reading).await.unwrap().unwrap();
    bytes
}

/// Sends `bytes`, ends the direction, and gives what comes back.
async fn ask(vm: &VmHandle, port: u32, bytes: &[u8]) -> Vec<u8> {
    let mut stream = vm.vsock_connect(port).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    read_all(&mut stream).await
}

#[tokio::test]
async fn streams_go_both_ways_with_each_direction_ended_by_itself() {
    let mut shell = shell().await;
    let mut listener = shell.vm.vsock_listen(5000).await.unwrap();

    // The guest calls, and ends its direction first.
    shell
        .send("echo ping | vsock connect 5000 > /tmp/answer")
        .await;
    let mut stream = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    let asked = read_all(&mut stream).await;
    stream.write_all(b"pong\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = shell.run("cat /tmp/answer").await;
    // The host calls, and ends its direction first.
    serve(&mut shell, 6000, "sort").await;
    let sorted = ask(&shell.vm, 6000, b"b\na\n").await;

    assert_eq!(asked, b"ping\n");
    assert_eq!(answer, "pong");
    assert_eq!(sorted, b"a\nb\n");
}

#[tokio::test]
async fn ports_that_nobody_listens_on_are_refused_at_once() {
    let mut shell = shell().await;
    let listener = shell.vm.vsock_listen(5000).await.unwrap();
    drop(listener);

    for port in [5000, 5001] {
        let refused = shell
            .run(&format!("! vsock connect {port} </dev/null"))
            .await;
        assert!(refused.contains("reset by peer"), "{refused}");
    }
    let host = shell.vm.vsock_connect(6001).await;

    let Some(Error::Io { source, .. }) = host.err() else {
        panic!("nobody listens")
    };
    assert_eq!(source.kind(), ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn guest_reaches_a_program_on_a_unix_socket_of_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("service");
    let mut shell = shell().await;
    let absent = shell.vm.vsock_listen(5000).await.unwrap();
    let refused = absent.hand_to_unix_socket(&path).await;
    let service = tokio::net::UnixListener::bind(&path).unwrap();
    let listener = shell.vm.vsock_listen(5000).await.unwrap();
    let forward = listener.hand_to_unix_socket(&path).await.unwrap();

    shell
        .send("echo ping | vsock connect 5000 > /tmp/answer")
        .await;
    let (mut called, _) = timeout(LIMIT, service.accept()).await.unwrap().unwrap();
    let mut asked = String::new();
    called.read_to_string(&mut asked).await.unwrap();
    called.write_all(b"pong\n").await.unwrap();
    drop(called);
    let answer = shell.run("cat /tmp/answer").await;
    forward.stop().await;
    let given_back = shell.vm.vsock_listen(5000).await;

    assert!(matches!(refused, Err(Error::File { .. })), "{refused:?}");
    assert_eq!((asked.as_str(), answer.as_str()), ("ping\n", "pong"));
    assert!(given_back.is_ok());
}

#[tokio::test]
async fn two_hundred_connections_at_once_keep_their_bytes_apart() {
    let mut shell = shell().await;
    serve(&mut shell, 6000, "cat").await;
    let vm = Arc::new(shell.vm);

    // All are there before the first is used.
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(vm.vsock_connect(6000).await.unwrap());
    }
    let mut tasks = Vec::new();
    for (number, mut stream) in streams.into_iter().enumerate() {
        tasks.push(tokio::spawn(async move {
            let sent = format!("{number}\n").repeat(100).into_bytes();
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            read_all(&mut stream).await == sent
        }));
    }

    for task in tasks {
        assert!(task.await.unwrap());
    }
}

#[tokio::test]
async fn a_large_transfer_comes_back_as_it_went() {
    let mut shell = shell().await;
    serve(&mut shell, 6000, "cat").await;
    let byte_at = |at: usize| (at ^ (at >> 8) ^ (at >> 16)) as u8;
    let stream = shell.vm.vsock_connect(6000).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);

    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sent < BULK {
            let end = (sent + (64 << 10)).min(BULK);
            let piece: Vec<u8> = (sent..end).map(byte_at).collect();
            writing.write_all(&piece).await.unwrap();
            sent = end;
        }
        writing.shutdown().await.unwrap();
    });
    let mut received = 0;
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = timeout(LIMIT, reading.read(&mut piece))
            .await
            .unwrap()
            .unwrap();
        if count == 0 {
            break;
        }
        let wrong = (0..count).find(|at| piece[*at] != byte_at(received + at));
        assert_eq!(wrong, None, "behind byte {received}");
        received += count;
    }

    assert_eq!(received, BULK);
    sending.await.unwrap();
}

#[tokio::test]
async fn ports_that_are_reserved_or_taken_are_refused_by_type() {
    let shell = shell().await;
    let vm = &shell.vm;
    let taken = vm.vsock_listen(5000).await.unwrap();

    let second = vm.vsock_listen(5000).await;
    for port in [*RESERVED_VSOCK_PORTS.start(), u32::MAX] {
        for refused in [
            vm.vsock_listen(port).await.err(),
            vm.vsock_connect(port).await.err(),
        ] {
            assert!(
                matches!(refused, Some(Error::InvalidSetting { .. })),
                "{refused:?}"
            );
        }
    }

    assert!(matches!(second.err(), Some(Error::InvalidState { .. })));
    assert_eq!(taken.port(), 5000);
}

#[tokio::test]
async fn a_listener_is_told_of_the_vms_end() {
    let mut shell = shell().await;
    let mut listener = shell.vm.vsock_listen(5000).await.unwrap();

    shell.send("poweroff -f").await;
    let accepted = timeout(LIMIT, listener.accept()).await.unwrap();
    let connected = shell.vm.vsock_connect(6000).await;

    assert!(matches!(accepted.err(), Some(Error::Ended(_))));
    assert!(matches!(connected.err(), Some(Error::Ended(_))));
}

#[tokio::test]
async fn a_vm_without_vsock_says_so() {
    let vm = test_utils::vm().await.start().await.unwrap();

    let refused = vm.vsock_connect(6000).await.err();

    assert!(
        matches!(refused, Some(Error::InvalidState { .. })),
        "{refused:?}"
    );
}
