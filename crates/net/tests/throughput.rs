//! Not a timed test: `cargo test --release -p capsa-net --test throughput -- --ignored --nocapture`
//! prints how fast the network carries one TCP stream each way between a frame socket and a server
//! on loopback, with no VM and no guest kernel, beside a plain copy over the same kind of socket.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use capsa_net::{
    Engine, FrameFormat, GuestConfig, NetworkConfig, Offloads, Policy, Resolver, offer_offloads,
};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

const TOTAL: usize = 2 << 30;
const SEGMENT: usize = 65_000;
const GUEST: [u8; 4] = [10, 0, 2, 3];
const HOST: [u8; 4] = [10, 0, 2, 2];

/// A guest's TCP, as small as it can be on a link that loses nothing.
struct Sender {
    socket: OwnedFd,
    mac: [u8; 6],
    port: u16,
    sequence: u32,
    acknowledged: u32,
    window: usize,
    received: u32,
    buffer: Vec<u8>,
    frame: Vec<u8>,
}

impl Sender {
    fn send(&mut self, flags: u8, options: &[u8], payload: usize) {
        let header = 20 + options.len();
        let total = 20 + header + payload;
        let frame = &mut self.frame;
        frame[..12].fill(0);
        frame[0] = 2; // the checksum needs no verifying, as between a guest and its own host
        frame[12..18].copy_from_slice(&[2, 0xca, 0x95, 0, 0, 1]);
        frame[18..24].copy_from_slice(&self.mac);
        frame[24..26].copy_from_slice(&[8, 0]);
        let ip = &mut frame[26..];
        ip[..20].fill(0);
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(total as u16).to_be_bytes());
        ip[8..10].copy_from_slice(&[64, 6]);
        ip[12..16].copy_from_slice(&GUEST);
        ip[16..20].copy_from_slice(&HOST);
        let mut sum: u32 = ip[..20]
            .chunks(2)
            .map(|p| u32::from(u16::from_be_bytes([p[0], p[1]])))
            .sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        ip[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        let tcp = &mut ip[20..];
        tcp[..2].copy_from_slice(&40_000u16.to_be_bytes());
        tcp[2..4].copy_from_slice(&self.port.to_be_bytes());
        tcp[4..8].copy_from_slice(&self.sequence.to_be_bytes());
        tcp[8..12].copy_from_slice(&self.received.to_be_bytes());
        tcp[12] = ((header / 4) << 4) as u8;
        tcp[13] = flags;
        tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
        tcp[16..20].fill(0);
        tcp[20..header].copy_from_slice(options);
        send(&self.socket, &frame[..26 + total], SendFlags::empty()).unwrap();
        self.sequence = self
            .sequence
            .wrapping_add(payload as u32 + u32::from(flags & 3 != 0));
    }

    /// Waits for a segment (unless `now` and there is none); returns its payload's length.
    fn receive(&mut self, now: bool) -> Option<usize> {
        let flags = if now {
            RecvFlags::DONTWAIT
        } else {
            RecvFlags::empty()
        };
        loop {
            let (length, _) = recv(&self.socket, &mut self.buffer[..], flags).ok()?;
            let ip = &self.buffer[26..length];
            if self.buffer[24..26] != [8, 0] || ip[9] != 6 {
                continue; // router advertisements
            }
            let tcp = &ip[20..];
            let header = usize::from(tcp[12] >> 4) * 4;
            let payload = tcp.len() - header;
            let field = |at: usize| u32::from_be_bytes(tcp[at..at + 4].try_into().unwrap());
            assert_eq!(tcp[13] & 4, 0, "a reset");
            let control = u32::from(tcp[13] & 3 != 0);
            self.received = field(4).wrapping_add(payload as u32 + control);
            self.acknowledged = field(8);
            self.window = usize::from(u16::from_be_bytes([tcp[14], tcp[15]]))
                << if control == 1 { 0 } else { 5 };
            return Some(payload);
        }
    }
}

fn start(port: u16) -> (Sender, UnixStream, std::thread::JoinHandle<Duration>) {
    let mut guest = GuestConfig::new("vm".parse().unwrap());
    guest.frames = FrameFormat::Virtio;
    guest.policy = Policy::allow_only(["host"]).unwrap();
    let mut config = NetworkConfig::new("bench").guest(guest);
    config.resolver = Resolver::None;
    let mac = config.addresses().unwrap()[0].mac.0;
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let _ = rustix::net::sockopt::set_socket_send_buffer_size_force(&theirs, 8 << 20);
    let (control, caller) = UnixStream::pair().unwrap();
    let engine = std::thread::spawn(move || {
        let engine = Engine::new(config, vec![ours], control).unwrap();
        engine.run().unwrap();
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::try_from(used).unwrap()
    });
    let all = Offloads {
        checksum: true,
        tcp4: true,
        tcp6: true,
    };
    send(&theirs, &offer_offloads(all), SendFlags::empty()).unwrap();
    let mut sender = Sender {
        socket: theirs,
        mac,
        port,
        sequence: 1,
        acknowledged: 0,
        window: 0,
        received: 0,
        buffer: vec![0; 70_000],
        frame: vec![0; 70_000],
    };
    // Maximum segment size, window scale of 14.
    sender.send(2, &[2, 4, 0xff, 0xd7, 1, 3, 3, 14], 0);
    sender.receive(false).unwrap();
    sender.send(16, &[], 0);
    (sender, caller, engine)
}

fn plain_copy() -> f64 {
    let (a, b) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        let data = vec![1; SEGMENT];
        for _ in 0..TOTAL / SEGMENT {
            send(&a, &data, SendFlags::empty()).unwrap();
        }
    });
    let mut buffer = vec![0; 70_000];
    let mut received = 0;
    while received < TOTAL / SEGMENT * SEGMENT {
        received += recv(&b, &mut buffer[..], RecvFlags::empty()).unwrap().0;
    }
    sender.join().unwrap();
    gigabits(received, start.elapsed())
}

fn gigabits(bytes: usize, time: Duration) -> f64 {
    bytes as f64 * 8.0 / time.as_secs_f64() / 1e9
}

#[test]
#[ignore = "a measurement, not a check"]
fn throughput_over_a_socket_pair() {
    let plain = plain_copy();
    println!("plain copy over the socket pair: {plain:.2} Gbit/s");

    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut guest, caller, engine) = start(server.local_addr().unwrap().port());
    let (mut accepted, _) = server.accept().unwrap();
    let sink = std::thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        while total < TOTAL {
            total += accepted.read(&mut buffer).unwrap();
        }
    });
    let start_time = Instant::now();
    let mut sent = 0;
    while sent < TOTAL {
        while guest.sequence.wrapping_sub(guest.acknowledged) as usize + SEGMENT > guest.window {
            guest.receive(false).unwrap();
        }
        while guest.receive(true).is_some() {}
        guest.send(16, &[], SEGMENT);
        sent += SEGMENT;
    }
    while guest.acknowledged != guest.sequence {
        guest.receive(false).unwrap();
    }
    sink.join().unwrap();
    let up = gigabits(sent, start_time.elapsed());
    println!(
        "guest to server: {up:.2} Gbit/s, {:.2} of the plain copy",
        up / plain
    );
    drop(caller);
    let core = gigabits(sent, engine.join().unwrap());
    println!("    {core:.2} Gbit/s for each core that the engine used");

    let (mut guest, caller, engine) = start(server.local_addr().unwrap().port());
    let (mut accepted, _) = server.accept().unwrap();
    let source = std::thread::spawn(move || {
        let buffer = vec![3; 1 << 20];
        for _ in 0..TOTAL >> 20 {
            accepted.write_all(&buffer).unwrap();
        }
    });
    let start_time = Instant::now();
    let mut received = 0;
    while received < TOTAL {
        received += guest.receive(false).unwrap();
        while let Some(more) = guest.receive(true) {
            received += more;
        }
        guest.send(16, &[], 0);
    }
    source.join().unwrap();
    let down = gigabits(received, start_time.elapsed());
    println!(
        "server to guest: {down:.2} Gbit/s, {:.2} of the plain copy",
        down / plain
    );
    drop(caller);
    let core = gigabits(received, engine.join().unwrap());
    println!("    {core:.2} Gbit/s for each core that the engine used");
}
