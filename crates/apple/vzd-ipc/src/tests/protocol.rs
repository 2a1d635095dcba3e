//! The protocol over real sockets, and any bytes into its decoders.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;

use crate::{
    Command, FrameDecoder, FrameError, HELLO_BYTES, Hello, HelloError, IpcError, IpcReceiver,
    IpcSender, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, Request, Start, ToDaemon, ToLibrary, VERSION,
    connect, decode, encode,
};
use capsa_apple_plan::{VzBoot, VzPlan};
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

fn plan() -> VzPlan {
    VzPlan {
        cpus: 2,
        memory_bytes: 1 << 30,
        boot: VzBoot::Linux {
            kernel: "/k".into(),
            initramfs: None,
            command_line: "console=hvc0".into(),
        },
        console: true,
        disks: vec![],
        shares: vec![],
        network: None,
        vsock: true,
        balloon: false,
        rosetta: None,
        nested_virtualization: false,
    }
}

type Library = (IpcSender<ToDaemon>, IpcReceiver<ToLibrary>);
type Daemon = (IpcSender<ToLibrary>, IpcReceiver<ToDaemon>);

async fn pair() -> (Library, Daemon) {
    let (a, b) = UnixStream::pair().unwrap();
    tokio::try_join!(connect(a), connect(b)).unwrap()
}

fn file_with(text: &str) -> File {
    let mut file = tempfile();
    file.write_all(text.as_bytes()).unwrap();
    file.rewind().unwrap();
    file
}

fn tempfile() -> File {
    let path = std::env::temp_dir().join(format!(
        "capsa-ipc-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

#[tokio::test]
async fn messages_arrive_in_order_with_their_descriptors() {
    let ((library, _r), (_s, mut daemon)) = pair().await;
    let start = ToDaemon::Start(Start {
        plan: plan(),
        restore: None,
    });
    let pause = ToDaemon::Request(Request {
        number: 7,
        command: Command::Pause,
    });

    let (one, two) = (file_with("one"), file_with("two"));
    library.send(&ToDaemon::Probe, &[]).await.unwrap();
    library
        .send(&start, &[one.as_fd(), two.as_fd()])
        .await
        .unwrap();
    library.send(&pause, &[]).await.unwrap();

    let (first, none) = daemon.receive().await.unwrap().unwrap();
    let (second, descriptors) = daemon.receive().await.unwrap().unwrap();
    let (third, _) = daemon.receive().await.unwrap().unwrap();
    assert_eq!((first, second, third), (ToDaemon::Probe, start, pause));
    assert!(none.is_empty());
    let read: Vec<String> = descriptors
        .into_iter()
        .map(|descriptor| {
            let mut text = String::new();
            File::from(descriptor).read_to_string(&mut text).unwrap();
            text
        })
        .collect();
    assert_eq!(read, ["one", "two"]);
}

#[tokio::test]
async fn message_larger_than_the_socket_holds_arrives_whole() {
    let ((library, _r), (_s, mut daemon)) = pair().await;
    let mut plan = plan();
    plan.rosetta = Some("x".repeat(900_000));
    let start = ToDaemon::Start(Start {
        plan,
        restore: None,
    });
    let (sent, received) = tokio::join!(library.send(&start, &[]), daemon.receive());
    sent.unwrap();
    assert_eq!(received.unwrap().unwrap().0, start);
}

#[tokio::test]
async fn peer_that_goes_between_messages_is_the_end_and_within_one_an_error() {
    let (library, (_s, mut daemon)) = pair().await;
    drop(library);
    assert!(daemon.receive().await.unwrap().is_none());

    let (mut raw, other) = UnixStream::pair().unwrap();
    raw.write_all(&Hello::OURS.to_bytes()).await.unwrap();
    raw.write_all(&[9, 0, 0, 0, 0, 1, 2]).await.unwrap();
    let (_s, mut daemon): (IpcSender<ToLibrary>, IpcReceiver<ToDaemon>) =
        connect(other).await.unwrap();
    drop(raw);
    assert!(matches!(daemon.receive().await, Err(IpcError::Truncated)));
}

#[tokio::test]
async fn other_version_and_strangers_are_told_apart() {
    for (bytes, expected) in [
        (
            Hello {
                version: VERSION + 1,
            }
            .to_bytes(),
            HelloError::Version {
                theirs: VERSION + 1,
            },
        ),
        (*b"SSH-2.0-Open", HelloError::Stranger),
    ] {
        let (mut raw, other) = UnixStream::pair().unwrap();
        raw.write_all(&bytes).await.unwrap();
        let connected = connect::<ToLibrary, ToDaemon>(other).await;
        match connected {
            Err(IpcError::Hello(error)) => assert_eq!(error, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn message_that_claims_descriptors_it_has_not_is_an_error() {
    let (mut raw, other) = UnixStream::pair().unwrap();
    raw.write_all(&Hello::OURS.to_bytes()).await.unwrap();
    raw.write_all(&encode(&ToDaemon::Probe, 2).unwrap())
        .await
        .unwrap();
    let (_s, mut daemon) = connect::<ToLibrary, ToDaemon>(other).await.unwrap();
    assert!(matches!(daemon.receive().await, Err(IpcError::Descriptors)));
}

#[test]
fn limits_hold_in_both_directions() {
    let long = ToLibrary::NetworkLost("x".repeat(MAX_MESSAGE_BYTES));
    assert!(matches!(encode(&long, 0), Err(FrameError::TooLong(_))));
    let many = encode(&ToDaemon::Probe, MAX_DESCRIPTORS + 1);
    assert!(matches!(many, Err(FrameError::TooManyDescriptors(_))));
    let mut decoder = FrameDecoder::default();
    decoder.push(&u32::MAX.to_le_bytes());
    decoder.push(&[0]);
    assert!(matches!(
        decoder.next_message(),
        Err(FrameError::TooLong(_))
    ));
    let mut decoder = FrameDecoder::default();
    decoder.push(&[0, 0, 0, 0, 255]);
    assert!(matches!(
        decoder.next_message(),
        Err(FrameError::TooManyDescriptors(255))
    ));
}

#[test]
fn bytes_left_over_are_refused() {
    let frame = encode(&ToDaemon::Probe, 0).unwrap();
    let mut message = frame[crate::HEADER_BYTES..].to_vec();
    assert_eq!(decode::<ToDaemon>(&message), Ok(ToDaemon::Probe));
    message.push(0);
    assert_eq!(decode::<ToDaemon>(&message), Err(FrameError::Malformed));
}

proptest! {
    #[test]
    fn any_bytes_decode_or_fail_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..512),
        hello in any::<[u8; HELLO_BYTES]>(),
    ) {
        let _ = decode::<ToDaemon>(&bytes);
        let _ = decode::<ToLibrary>(&bytes);
        let _ = Hello::check(hello);
        let mut decoder = FrameDecoder::default();
        for piece in bytes.chunks(3) {
            decoder.push(piece);
            while let Ok(Some((message, _))) = decoder.next_message() {
                let _ = decode::<ToDaemon>(&message);
            }
        }
    }

    #[test]
    fn frames_cut_into_any_pieces_come_out_whole(
        numbers in proptest::collection::vec(any::<u32>(), 1..20),
        piece in 1_usize..40,
    ) {
        let messages: Vec<ToLibrary> = numbers
            .iter()
            .map(|number| ToLibrary::Done { number: *number, error: None })
            .collect();
        let stream: Vec<u8> = messages.iter().flat_map(|m| encode(m, 0).unwrap()).collect();
        let mut decoder = FrameDecoder::default();
        let mut out = Vec::new();
        for piece in stream.chunks(piece) {
            decoder.push(piece);
            while let Some((message, _)) = decoder.next_message().unwrap() {
                out.push(decode::<ToLibrary>(&message).unwrap());
            }
        }
        prop_assert_eq!(out, messages);
        prop_assert!(decoder.is_empty());
    }
}
