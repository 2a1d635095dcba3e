//! Frames through vfkit's socket: bare ones, and a guest's own network stack with `capsa-net` behind
//! the socket, out to a server on this computer.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

mod bench;
mod guest_stack;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener};
use std::os::unix::net::{UnixDatagram, UnixStream};

use bench::{Bench, read_until};
use capsa_core::NetworkSpec;
use capsa_net::{Engine, GuestConfig, NetworkConfig, Policy, Resolver};
use guest_stack::GuestStack;
use tokio::io::AsyncWriteExt;

/// How much goes each way: many times what any buffer between the two ends holds of frames.
const AMOUNT: usize = 256 << 10;

#[tokio::test]
async fn frames_are_carried_one_a_datagram_up_to_64_kib() {
    let bench = Bench::new();
    let mut spec = bench.spec("");
    spec.network = Some(NetworkSpec::default());
    let mut vm = bench.launch(&spec).await;
    let mut console = vm.console.take().unwrap();
    let network = UnixDatagram::from(vm.handle.take_network_socket().unwrap());
    assert!(vm.handle.take_network_socket().is_none(), "there once");

    console
        .input
        .write_all(b"frame ffffffffffff0806\n")
        .await
        .unwrap();
    let (network, frame) = tokio::task::spawn_blocking(move || {
        let mut frame = vec![0; 65536];
        let length = network.recv(&mut frame).unwrap();
        network.send(&[0xab; 9000]).unwrap();
        frame.truncate(length);
        (network, frame)
    })
    .await
    .unwrap();
    let shown = read_until(&mut console, "abab\n").await;

    assert_eq!(frame, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 8, 6]);
    assert!(shown.contains(&"ab".repeat(9000)));
    drop(network);
}

/// Bytes that do not repeat where a frame or a buffer ends.
fn pattern(seed: u32) -> Vec<u8> {
    (0..AMOUNT as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8)
        .collect()
}

/// A server that says `answer` to the first who calls, and returns what it heard meanwhile.
fn serve_once(server: TcpListener, answer: Vec<u8>) -> Vec<u8> {
    let (stream, _) = server.accept().unwrap();
    let mut out = stream.try_clone().unwrap();
    let saying = std::thread::spawn(move || {
        out.write_all(&answer).unwrap();
        out.shutdown(Shutdown::Write).unwrap();
    });
    let mut heard = Vec::new();
    (&stream).read_to_end(&mut heard).unwrap();
    saying.join().unwrap();
    heard
}

#[tokio::test]
async fn guest_behind_vfkits_socket_gets_an_address_and_exchanges_data_with_a_server_of_the_host() {
    // Arrange: a network that lets its guest reach this computer.
    let mut guest = GuestConfig::new("vm".parse().unwrap());
    guest.policy = Policy::allow_only(["host"]).unwrap();
    let mut config = NetworkConfig::new("bench").guest(guest);
    config.resolver = Resolver::None;
    let expected = config.addresses().unwrap().remove(0);
    let host = config.host4().unwrap();
    let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = SocketAddrV4::new(host, server.local_addr().unwrap().port());
    let (ours, theirs) = (pattern(1), pattern(2));
    let answer = theirs.clone();
    let serving = std::thread::spawn(move || serve_once(server, answer));

    // The machine, started by the backend, and the network on the socket that it hands out.
    let bench = Bench::new();
    let mut spec = bench.spec("");
    spec.network = Some(NetworkSpec {
        mac: Some(expected.mac),
        ..NetworkSpec::default()
    });
    let mut vm = bench.launch(&spec).await;
    let mut console = vm.console.take().unwrap();
    let frames = vm.handle.take_network_socket().unwrap();
    let (control, controlled) = UnixStream::pair().unwrap();
    let engine = std::thread::spawn(move || {
        let engine = Engine::new(config, vec![frames], controlled).unwrap();
        engine.run()
    });

    // The guest's side of the interface.
    let wire = bench.path("wire");
    let interface = UnixDatagram::bind(&wire).unwrap();
    let command = format!("bridge {}\n", wire.display());
    console.input.write_all(command.as_bytes()).await.unwrap();
    read_until(&mut console, "bridged\n").await;
    interface.connect(bench.path("wire.guest")).unwrap();

    // Act
    let sent = ours.clone();
    let (lease, received) = tokio::task::spawn_blocking(move || {
        let mut guest = GuestStack::new(interface, expected.mac.0);
        let lease = guest.lease();
        (lease, guest.exchange(address, &sent))
    })
    .await
    .unwrap();
    let heard = serving.join().unwrap();

    // Assert
    assert_eq!(Some(lease.address), expected.ipv4);
    assert_eq!(lease.router, expected.ipv4_gateway);
    assert!(heard == ours, "{} bytes arrived at the server", heard.len());
    assert!(received == theirs, "{} bytes came back", received.len());
    drop(control);
    engine.join().unwrap().unwrap();
}
