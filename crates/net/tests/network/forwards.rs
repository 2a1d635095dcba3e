//! Ports of the host that lead to the guest, and the guest's way to the host.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;

use capsa_net::{Forward, Policy, Rule};

use crate::lab::{Lab, network};

/// Serves one echo on a TCP port of the guest.
fn echo(lab: &Lab, bind: &'static str) -> std::thread::JoinHandle<SocketAddr> {
    let server = lab.within("g0", move || TcpListener::bind(bind).unwrap());
    std::thread::spawn(move || {
        let (mut stream, client) = server.accept().unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        stream.write_all(&data).unwrap();
        client
    })
}

fn exchange(mut stream: impl Read + Write, shutdown: impl FnOnce()) -> Vec<u8> {
    stream.write_all(&[5; 100_000]).unwrap();
    shutdown();
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    data
}

#[test]
fn tcp_forwards_carry_data_in_both_families_on_a_free_port() {
    let lab = Lab::start();
    let name = lab.config.guests[0].name.clone();
    for (listen, bind) in [("127.0.0.1", "0.0.0.0:80"), ("::1", "[::]:81")] {
        let port = if listen == "::1" { 81 } else { 80 };
        let forward = Forward::tcp(0, port).on(listen.parse().unwrap());
        let info = lab
            .block_on(lab.control().add_forward(name.clone(), forward))
            .unwrap();
        let bound = info.bound.unwrap();
        assert_ne!(bound.port(), 0);
        let served = echo(&lab, bind);
        let data = lab.within("h", move || {
            let stream = TcpStream::connect(bound).unwrap();
            let end = stream.try_clone().unwrap();
            exchange(stream, move || {
                end.shutdown(std::net::Shutdown::Write).unwrap()
            })
        });
        assert!(data == [5; 100_000]);
        let client = served.join().unwrap().ip().to_canonical();
        assert!(client.to_string() == "10.0.2.1" || client.is_ipv6());
        lab.block_on(lab.control().remove_forward(info.id)).unwrap();
        let refused = lab.within("h", move || TcpStream::connect(bound).unwrap_err());
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn unix_socket_leads_to_a_guest_port() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.sock");
    let mut config = network();
    config.guests[0].forwards.push(Forward::unix(&path, 80));
    let lab = Lab::with(config);
    let served = echo(&lab, "0.0.0.0:80");
    let stream = UnixStream::connect(&path).unwrap();
    let end = stream.try_clone().unwrap();
    let data = exchange(stream, move || {
        end.shutdown(std::net::Shutdown::Write).unwrap()
    });
    assert!(data == [5; 100_000]);
    served.join().unwrap();
    drop(lab);
    assert!(!path.exists());
}

#[test]
fn udp_forward_tells_clients_apart() {
    let mut config = network();
    config.guests[0].forwards.push(Forward::udp(0, 53));
    let lab = Lab::with(config);
    let bound = lab.block_on(lab.control().forwards()).unwrap()[0]
        .bound
        .unwrap();
    let server = lab.within("g0", || UdpSocket::bind("0.0.0.0:53").unwrap());
    let clients = lab.within("h", || {
        [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap())
    });
    for (index, client) in clients.iter().enumerate() {
        client.send_to(&[index as u8], bound).unwrap();
    }
    let mut froms = Vec::new();
    for _ in &clients {
        let mut data = [0];
        let (_, from) = server.recv_from(&mut data).unwrap();
        server.send_to(&[data[0] + 10], from).unwrap();
        froms.push(from);
    }
    froms.sort();
    froms.dedup();
    assert_eq!(froms.len(), 3);
    for (index, client) in clients.iter().enumerate() {
        let mut data = [0];
        client.recv(&mut data).unwrap();
        assert_eq!(data[0], index as u8 + 10);
    }
}

#[test]
fn forward_to_a_closed_port_is_reset_and_a_taken_port_is_named() {
    let lab = Lab::start();
    let name = lab.config.guests[0].name.clone();
    let info = lab
        .block_on(lab.control().add_forward(name.clone(), Forward::tcp(0, 99)))
        .unwrap();
    let bound = info.bound.unwrap();
    let error = lab.within("h", move || {
        TcpStream::connect(bound)
            .unwrap()
            .read(&mut [0])
            .unwrap_err()
    });
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let again = lab.block_on(
        lab.control()
            .add_forward(name.clone(), Forward::tcp(bound.port(), 99)),
    );
    let text = again.unwrap_err().to_string();
    assert!(
        text.contains(&bound.to_string()) && text.contains("in use"),
        "{text}"
    );
    let zero = lab.block_on(lab.control().add_forward(name, Forward::tcp(0, 0)));
    assert!(zero.unwrap_err().to_string().contains("port 0"));
}

#[test]
fn incoming_rule_keeps_clients_out() {
    let mut config = network();
    config.guests[0].forwards.push(Forward::tcp(0, 80));
    config.guests[0]
        .policy
        .rules
        .push(Rule::deny("127.0.0.0/8").unwrap().incoming());
    let lab = Lab::with(config);
    let _server = lab.within("g0", || TcpListener::bind("0.0.0.0:80").unwrap());
    let bound = lab.block_on(lab.control().forwards()).unwrap()[0]
        .bound
        .unwrap();
    let error = lab.within("h", move || {
        TcpStream::connect(bound)
            .unwrap()
            .read(&mut [0])
            .unwrap_err()
    });
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[test]
fn host_services_are_reached_only_when_allowed() {
    for (policy, allowed) in [
        (Policy::allow_all(), false),
        (Policy::allow_only(["host:5432"]).unwrap(), true),
        (
            Policy::allow_only(["host:5433", "any", "10.0.0.0/8"]).unwrap(),
            false,
        ),
    ] {
        let lab = Lab::with_policy(policy);
        let server = lab.within("h", || TcpListener::bind("127.0.0.1:5432").unwrap());
        let connected = lab.within("g0", || TcpStream::connect("10.0.2.2:5432").is_ok());
        assert_eq!(connected, allowed);
        drop(server);
        // The host's own address on its network is no way round.
        let own = lab.within("h", || TcpListener::bind("192.0.2.1:5432").unwrap());
        let connected = lab.within("g0", || TcpStream::connect("192.0.2.1:5432").is_ok());
        assert!(!connected);
        drop(own);
    }
}
