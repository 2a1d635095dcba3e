//! Several guests on one network.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use capsa_net::{FrameFormat, GuestConfig, NetworkConfig, Resolver};

use crate::lab::Lab;

fn three(outside: bool, peers: bool) -> NetworkConfig {
    let mut config = NetworkConfig::new("cluster");
    config.outside = outside;
    config.peers = peers;
    config.resolver = Resolver::None;
    for (name, frames) in [
        ("a", FrameFormat::Datagram),
        ("b", FrameFormat::Virtio),
        ("c", FrameFormat::Stream),
    ] {
        let mut guest = GuestConfig::new(name.parse().unwrap());
        guest.frames = frames;
        config.guests.push(guest);
    }
    config
}

#[test]
fn guests_reach_one_another_by_name_and_not_the_outside() {
    let lab = Lab::with(three(false, true));
    for (from, to) in [("g0", "b"), ("g1", "c"), ("g2", "a")] {
        let (success, text) = lab.try_in(
            from,
            &format!("ping -c 1 -W 5 {to}.capsa.internal && ping -4 -c 1 -W 5 {to}"),
        );
        assert!(success, "{from} to {to}: {text}");
        let (success, text) = lab.try_in(
            from,
            "ping -c 1 -W 2 1.2.3.4 || ping -c 1 -W 2 10.0.2.2 || ping -c 1 -W 2 192.0.2.1",
        );
        assert!(!success, "{from}: {text}");
    }
}

#[test]
fn frames_with_offloads_are_finished_for_guests_without() {
    let lab = Lab::with(three(false, true));
    for (from, to, address) in [
        ("g1", "g0", "10.0.2.3:80"),
        ("g0", "g1", "10.0.2.4:80"),
        ("g1", "g2", "10.0.2.5:80"),
    ] {
        let server = lab.within(to, move || TcpListener::bind(address).unwrap());
        let sent: Vec<u8> = (0..5_000_000u32).map(|n| (n / 7) as u8).collect();
        let data = sent.clone();
        let client = lab.thread(from, move || {
            TcpStream::connect(address)
                .unwrap()
                .write_all(&data)
                .unwrap()
        });
        let mut received = Vec::new();
        server
            .accept()
            .unwrap()
            .0
            .read_to_end(&mut received)
            .unwrap();
        client.join().unwrap();
        assert!(received == sent, "{from} to {to}");
    }
}

#[test]
fn guests_that_must_not_meet_do_not() {
    let lab = Lab::with(three(true, false));
    let (success, _) = lab.try_in("g0", "ping -c 1 -W 2 10.0.2.4");
    assert!(!success);
    let (_, text) = lab.try_in("g0", "dig +short b.capsa.internal");
    assert_eq!(text.trim(), "");
    let (success, text) = lab.try_in("g0", "ping -c 1 -W 5 1.2.3.4");
    assert!(success, "{text}");
}

#[test]
fn guest_cannot_take_another_ones_address() {
    let lab = Lab::with(three(true, true));
    let (_, _) = lab.try_in(
        "g0",
        "ip addr add 10.0.2.4/24 dev tap0; ping -c 1 -W 1 -I 10.0.2.4 10.0.2.5",
    );
    let counters = lab.block_on(lab.control().guests()).unwrap();
    assert!(counters[0].counters.spoofed > 0);
    let (success, text) = lab.try_in("g2", "ping -c 1 -W 5 10.0.2.4");
    assert!(success, "{text}");
}
