//! Faults that are injected, floods, limits, and the tools that watch.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use capsa_net::{Event, LinkConditions};

use crate::lab::{Lab, SERVER4, network};

#[test]
fn partition_stops_everything_until_it_ends() {
    let lab = Lab::start();
    let name = lab.config.guests[0].name.clone();
    lab.guest("ping -c 1 -W 5 1.2.3.4");
    let cut = LinkConditions {
        partitioned: true,
        ..LinkConditions::ideal()
    };
    lab.block_on(lab.control().set_link(name.clone(), cut))
        .unwrap();
    assert!(!lab.try_guest("ping -c 1 -W 1 1.2.3.4").0);
    lab.block_on(lab.control().set_link(name, LinkConditions::ideal()))
        .unwrap();
    lab.guest("ping -c 1 -W 5 1.2.3.4");
}

#[test]
fn latency_and_rate_are_kept() {
    let mut config = network();
    config.guests[0].link.latency = Duration::from_millis(50);
    config.guests[0].link.download = Some(1_000_000);
    let lab = Lab::with(config);
    let text = lab.guest("ping -c 3 -i 0.3 -W 5 1.2.3.4 | tail -1");
    let average: f64 = text.split('/').nth(4).unwrap().parse().unwrap();
    assert!(average >= 100.0, "{text}");
    let server = lab.within("i", || TcpListener::bind((SERVER4, 7)).unwrap());
    let send = std::thread::spawn(move || {
        server
            .accept()
            .unwrap()
            .0
            .write_all(&[1; 2_000_000])
            .unwrap()
    });
    let start = Instant::now();
    let mut stream = lab.within("g0", || TcpStream::connect((SERVER4, 7)).unwrap());
    let mut data = Vec::new();
    stream.read_to_end(&mut data).unwrap();
    send.join().unwrap();
    assert_eq!(data.len(), 2_000_000);
    assert!(
        start.elapsed() >= Duration::from_millis(1900),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn flood_of_syns_is_bounded_and_spares_other_flows() {
    let lab = Lab::start();
    let server = lab.within("i", || TcpListener::bind((SERVER4, 7)).unwrap());
    let mut stream = lab.within("g0", || TcpStream::connect((SERVER4, 7)).unwrap());
    let (mut accepted, _) = server.accept().unwrap();
    lab.guest("ip route get 9.9.9.9 >/dev/null");
    crate::lab::run(&mut lab.command("i", "ip route add blackhole 9.9.9.0/24"));
    // Ten thousand connections that nobody answers, as fast as they can be started.
    let flood = lab.thread("g0", || {
        let sockets: Vec<_> = (0..10_000u32)
            .filter_map(|index| {
                use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let fd = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).ok()?;
                let port = 1000 + (index % 50_000) as u16;
                let to = std::net::SocketAddr::from(([9, 9, 9, 9], port));
                let _ = connect(&fd, &to);
                Some(fd)
            })
            .collect();
        sockets.len()
    });
    for _ in 0..20 {
        stream.write_all(b"x").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
    }
    assert!(flood.join().unwrap() > 5000);
    let info = lab.block_on(lab.control().guests()).unwrap().remove(0);
    assert!(
        info.flows.0 <= lab.config.limits.tcp_pending + 2,
        "{}",
        info.flows.0
    );
    let mut late = lab.within("g0", || TcpStream::connect((SERVER4, 7)).unwrap());
    late.write_all(b"x").unwrap();
    server.accept().unwrap().0.read_exact(&mut [0]).unwrap();
}

#[test]
fn flows_beyond_the_limit_are_refused_and_told() {
    let mut config = network();
    config.limits.tcp_flows = 5;
    let lab = Lab::with(config);
    let mut events = lab.control().events();
    let server = lab.within("i", || TcpListener::bind((SERVER4, 7)).unwrap());
    let streams = lab.within("g0", || {
        [(); 8].map(|()| TcpStream::connect((SERVER4, 7)).ok())
    });
    assert_eq!(streams.iter().flatten().count(), 5);
    let told = lab.block_on(events.recv()).unwrap();
    assert!(
        matches!(told, Event::Notice(capsa_net::Notice::FlowLimit(_))),
        "{told:?}"
    );
    drop(server);
}

#[test]
fn capture_is_read_by_tshark() {
    let lab = Lab::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    let fd = file.reopen().unwrap().into();
    lab.block_on(lab.control().start_capture(None, fd, 1 << 20))
        .unwrap();
    lab.guest("ping -c 2 -i 0.2 -W 5 1.2.3.4");
    lab.block_on(lab.control().stop_capture()).unwrap();
    let output = crate::lab::run(std::process::Command::new("tshark").args([
        "-r",
        &file.path().display().to_string(),
        "-Y",
        "icmp",
        "-T",
        "fields",
        "-e",
        "icmp.type",
        "-e",
        "frame.interface_name",
        "-e",
        "frame.packet_flags_direction",
    ]));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(
        lines[0].starts_with("8\tvm\t") && lines[1].starts_with("0\tvm\t"),
        "{text}"
    );
}

#[test]
fn guest_that_is_gone_takes_its_flows_with_it() {
    let lab = Lab::start();
    let mut events = lab.control().events();
    let server = lab.within("i", || TcpListener::bind((SERVER4, 7)).unwrap());
    let _stream = lab.within("g0", || TcpStream::connect((SERVER4, 7)).unwrap());
    let (mut accepted, _) = server.accept().unwrap();
    let name = lab.config.guests[0].name.clone();
    lab.block_on(lab.control().remove_guest(name.clone()))
        .unwrap();
    let error = accepted.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    // It can come back, and its link closing by itself is told.
    let (ours, theirs) = crate::lab::frame_pair(rustix::net::SocketType::SEQPACKET);
    let config = lab.config.guests[0].clone();
    let addresses = lab.block_on(lab.control().add_guest(config, ours)).unwrap();
    assert_eq!(addresses, lab.addresses[0]);
    drop(theirs);
    assert_eq!(
        lab.block_on(events.recv()).unwrap(),
        Event::LinkClosed(name)
    );
}
