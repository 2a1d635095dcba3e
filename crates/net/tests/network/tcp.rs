//! TCP from end to end: data, ends, resets, refusals, and many flows at once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::lab::{Lab, SERVER4, SERVER6, run};

fn address(host: &str, port: u16) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), port)
}

fn listen(lab: &Lab, host: &'static str, port: u16) -> TcpListener {
    lab.within("i", move || TcpListener::bind(address(host, port)).unwrap())
}

fn connect(lab: &Lab, host: &'static str, port: u16) -> std::io::Result<TcpStream> {
    lab.within("g0", move || TcpStream::connect(address(host, port)))
}

#[test]
fn tcp_half_close_carries_data_the_other_way() {
    let lab = Lab::start();
    for host in [SERVER4, SERVER6] {
        let server = listen(&lab, host, 7);
        let echo = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut data = Vec::new();
            stream.read_to_end(&mut data).unwrap();
            stream.write_all(&data).unwrap();
        });
        let mut stream = connect(&lab, host, 7).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        assert_eq!(data, b"hello");
        echo.join().unwrap();
    }
}

#[test]
fn tcp_server_that_half_closes_gets_the_rest() {
    let lab = Lab::start();
    let server = listen(&lab, SERVER4, 7);
    let sink = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.write_all(b"last words").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        data.len()
    });
    let mut stream = connect(&lab, SERVER4, 7).unwrap();
    let mut words = String::new();
    stream.read_to_string(&mut words).unwrap();
    stream.write_all(&vec![1; 3_000_000]).unwrap();
    drop(stream);
    assert_eq!(words, "last words");
    assert_eq!(sink.join().unwrap(), 3_000_000);
}

#[test]
fn tcp_refused_and_unreachable_reach_the_guest_as_such() {
    let lab = Lab::start();
    for host in [SERVER4, SERVER6] {
        assert_eq!(
            connect(&lab, host, 9).unwrap_err().kind(),
            ErrorKind::ConnectionRefused
        );
    }
    // The internet's router knows no way to this address.
    crate::lab::sysctl(&lab.namespace("i"), "net/ipv4/ip_forward", "1");
    run(&mut lab.command("i", "ip route add unreachable 9.9.9.0/24"));
    run(&mut lab.command("h", "ip route add unreachable 9.9.8.0/24"));
    for host in ["9.9.9.9", "9.9.8.8"] {
        let error = connect(&lab, host, 80).unwrap_err();
        let unreachable = matches!(
            error.kind(),
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
        );
        assert!(unreachable, "{host}: {error}");
    }
}

#[test]
fn tcp_reset_by_the_server_reaches_the_guest() {
    let lab = Lab::start();
    let server = listen(&lab, SERVER4, 7);
    let resetter = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        let fd = std::os::fd::OwnedFd::from(stream);
        rustix::net::sockopt::set_socket_linger(&fd, Some(Duration::ZERO)).unwrap();
    });
    let mut stream = connect(&lab, SERVER4, 7).unwrap();
    stream.write_all(b"hello").unwrap();
    let error = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    resetter.join().unwrap();
}

#[test]
fn tcp_reset_by_the_guest_reaches_the_server() {
    let lab = Lab::start();
    let server = listen(&lab, SERVER4, 7);
    let stream = connect(&lab, SERVER4, 7).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    let fd = std::os::fd::OwnedFd::from(stream);
    rustix::net::sockopt::set_socket_linger(&fd, Some(Duration::ZERO)).unwrap();
    drop(fd);
    let error = accepted.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn tcp_back_pressure_reaches_the_sender_both_ways_and_spares_other_flows() {
    let lab = Lab::start();
    let server = listen(&lab, SERVER4, 7);
    let upload = connect(&lab, SERVER4, 7).unwrap();
    let (accepted, _) = server.accept().unwrap();
    for (mut sender, mut receiver) in [(&upload, &accepted), (&accepted, &upload)] {
        // Nobody reads: the sender is held up once every buffer on the way is full.
        sender
            .set_write_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let chunk = vec![7; 1 << 16];
        let mut sent = 0;
        let blocked = loop {
            match sender.write(&chunk) {
                Ok(count) => sent += count,
                Err(error) => break error,
            }
            assert!(sent < 64 << 20, "no back-pressure");
        };
        assert_eq!(blocked.kind(), ErrorKind::WouldBlock);
        // Another flow does not notice, although nobody reads yet.
        let mut other = connect(&lab, SERVER4, 7).unwrap();
        let (mut other_end, _) = server.accept().unwrap();
        other.write_all(b"x").unwrap();
        other_end.read_exact(&mut [0]).unwrap();
        // All of it arrives once it is read.
        let mut buffer = vec![0; 1 << 20];
        let mut received = 0;
        while received < sent {
            received += receiver.read(&mut buffer).unwrap();
        }
        assert_eq!(received, sent);
    }
}

#[test]
fn tcp_server_that_never_answers_holds_up_nobody() {
    let lab = Lab::start();
    // Packets to this address vanish.
    run(&mut lab.command("i", "ip route add blackhole 9.9.9.0/24"));
    let guest = lab.namespace("g0");
    let waiting = crate::lab::in_namespace(&guest, || {
        TcpStream::connect_timeout(&address("9.9.9.9", 80), Duration::from_secs(10))
    });
    let server = listen(&lab, SERVER4, 7);
    let mut stream = connect(&lab, SERVER4, 7).unwrap();
    let (mut accepted, _) = server.accept().unwrap();
    stream.write_all(b"x").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    assert!(!waiting.is_finished(), "the other flow had to wait for it");
    assert_eq!(
        waiting.join().unwrap().unwrap_err().kind(),
        ErrorKind::TimedOut
    );
}

#[test]
fn tcp_thousand_flows_at_once_all_carry_their_data() {
    const FLOWS: usize = 1000;
    let lab = Lab::start();
    let server = listen(&lab, SERVER4, 7);
    let serve = std::thread::spawn(move || {
        let mut streams = Vec::new();
        for _ in 0..FLOWS {
            streams.push(server.accept().unwrap().0);
        }
        for stream in &mut streams {
            let mut data = [0; 4];
            stream.read_exact(&mut data).unwrap();
            stream.write_all(&vec![data[3]; 10_000]).unwrap();
        }
        for mut stream in streams {
            stream.read_to_end(&mut Vec::new()).unwrap();
        }
    });
    let client = lab.thread("g0", move || {
        let mut streams: Vec<TcpStream> = (0..FLOWS)
            .map(|_| TcpStream::connect(address(SERVER4, 7)).unwrap())
            .collect();
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&(index as u32).to_be_bytes()).unwrap();
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut data = vec![0; 10_000];
            stream.read_exact(&mut data).unwrap();
            assert!(data.iter().all(|byte| *byte == index as u8));
        }
        streams
    });
    let streams = client.join().unwrap();
    let info = lab.block_on(lab.control().guests()).unwrap().remove(0);
    assert_eq!(info.flows.0 as usize, FLOWS);
    assert!(info.tcp_buffers <= lab.config.limits.tcp_buffers);
    drop(streams);
    serve.join().unwrap();
    // The flows end with their connections, by events that are on their way already.
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let info = lab.block_on(lab.control().guests()).unwrap().remove(0);
        if info.flows.0 == 0 {
            assert_eq!(info.tcp_buffers, 0);
            break;
        }
        assert!(Instant::now() < deadline, "{} flows are left", info.flows.0);
    }
}

#[test]
fn tcp_survives_loss_and_delay() {
    let mut config = crate::lab::network();
    config.guests[0].link.loss_ppm = 30_000;
    config.guests[0].link.latency = Duration::from_millis(3);
    let lab = Lab::with(config);
    let server = listen(&lab, SERVER4, 7);
    let pattern: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let sent = pattern.clone();
    let echo = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut data = Vec::new();
        stream.read_to_end(&mut data).unwrap();
        stream.write_all(&data).unwrap();
    });
    let mut stream = connect(&lab, SERVER4, 7).unwrap();
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    assert!(data == pattern);
    echo.join().unwrap();
    let counters = lab
        .block_on(lab.control().guests())
        .unwrap()
        .remove(0)
        .counters;
    assert!(counters.dropped > 0, "the link lost nothing");
}
