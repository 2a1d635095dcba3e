use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::packet::{HEADER, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::*;
use crate::testing::{Buffer, Harness};

const CID: u64 = 5;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A guest's driver and the host's program, on the two sides of a device.
struct World {
    harness: Harness,
    host: ControlSocket,
    metrics: std::sync::Arc<VsockMetrics>,
}

impl World {
    fn new() -> Self {
        let (host, device) = ControlSocket::pair().unwrap();
        let vsock = Vsock::new(CID, Box::new(ControlPorts::new(device))).unwrap();
        let metrics = vsock.metrics();
        let mut harness = Harness::started(vsock);
        for _ in 0..128 {
            harness.queues[0].add(&[Buffer::Writable(4096)]);
        }
        harness.kick(RECEIVE);
        Self {
            harness,
            host,
            metrics,
        }
    }

    fn listen(&mut self, port: u32) {
        self.host.send(&ToDevice::Listen { port }, None).unwrap();
    }

    fn next_message(&mut self) -> (FromDevice, Option<OwnedFd>) {
        self.harness.settle();
        self.host.receive().unwrap()
    }

    fn send_raw(&mut self, header: Header, data: &[u8]) {
        let bytes = header.to_bytes();
        self.harness.queues[1].add(&[Buffer::Readable(&bytes), Buffer::Readable(data)]);
        self.harness.kick(TRANSMIT);
        assert_eq!(
            self.harness.queues[1].take_used().map(|(_, len)| len),
            Some(0)
        );
    }

    fn packet(host_port: u32, guest_port: u32, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest_port,
            dst_port: host_port,
            len: 0,
            kind: TYPE_STREAM,
            op: Some(op),
            flags: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    fn send(&mut self, host_port: u32, guest_port: u32, op: Op) {
        self.send_raw(Self::packet(host_port, guest_port, op), b"");
    }

    fn send_data(&mut self, host_port: u32, guest_port: u32, data: &[u8]) {
        let len = data.len() as u32;
        let packet = Self::packet(host_port, guest_port, Op::ReadWrite);
        self.send_raw(Header { len, ..packet }, data);
    }

    fn send_shutdown(&mut self, host_port: u32, guest_port: u32, flags: u32) {
        let packet = Self::packet(host_port, guest_port, Op::Shutdown);
        self.send_raw(Header { flags, ..packet }, b"");
    }

    /// The next packet that the guest gets; its buffer is offered again.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.harness.settle();
        let bytes = self.harness.queues[0].take_written()?;
        self.harness.queues[0].add(&[Buffer::Writable(4096)]);
        let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
        assert_eq!(bytes.len() - HEADER, header.len as usize);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        Some((header, bytes[HEADER..].to_vec()))
    }

    fn expect(&mut self, op: Op) -> Header {
        let (header, _) = self
            .receive()
            .unwrap_or_else(|| panic!("no packet, but {op:?} expected"));
        assert_eq!(header.op, Some(op), "{header:?}");
        header
    }

    /// A connection that the guest has made.
    fn connected(&mut self, host_port: u32, guest_port: u32) -> UnixStream {
        self.listen(host_port);
        self.send(host_port, guest_port, Op::Request);
        let response = self.expect(Op::Response);
        assert_eq!(
            (response.src_port, response.dst_port),
            (host_port, guest_port)
        );
        let (message, stream) = self.next_message();
        assert_eq!(
            message,
            FromDevice::Accepted {
                host_port,
                guest_port
            }
        );
        let stream = UnixStream::from(stream.unwrap());
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A connection that the host asks for: its end, and the host port that the guest sees.
    fn calling(&mut self, id: u64, guest_port: u32) -> (UnixStream, u32) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        self.host
            .send(&ToDevice::Connect { id, guest_port }, Some(theirs.as_fd()))
            .unwrap();
        let request = self.expect(Op::Request);
        assert_eq!(request.dst_port, guest_port);
        (ours, request.src_port)
    }
}

fn read_available(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return all,
            Ok(count) => all.extend(&buf[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

fn is_at_end(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0) | Err(_))
        && !matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 11) as u8)
        .collect()
}

#[test]
fn guest_reaches_a_listening_host_port_and_data_flows_both_ways() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    world.send_data(1000, 77, b"hello host");
    assert_eq!(read_available(&mut stream), b"hello host");
    stream.write_all(b"hello guest").unwrap();
    let (header, data) = world.receive().unwrap();
    assert_eq!((header.op, header.fwd_cnt), (Some(Op::ReadWrite), 10));
    assert_eq!(data, b"hello guest");
    assert_eq!(world.metrics.opened(), 1);
}

#[test]
fn guest_is_refused_at_once_where_nobody_listens() {
    let mut world = World::new();
    world.send(4444, 77, Op::Request);
    let reset = world.expect(Op::Reset);
    assert_eq!((reset.src_port, reset.dst_port), (4444, 77));
    assert_eq!(world.metrics.refused(), 1);
}

#[test]
fn guest_is_refused_after_the_port_was_closed() {
    let mut world = World::new();
    let _first = world.connected(1000, 77);
    world
        .host
        .send(&ToDevice::Unlisten { port: 1000 }, None)
        .unwrap();
    world.harness.settle();
    world.send(1000, 78, Op::Request);
    world.expect(Op::Reset);
}

#[test]
fn guest_is_refused_when_the_program_is_gone() {
    let mut world = World::new();
    world.listen(1000);
    world.harness.settle();
    let (host, _) = ControlSocket::pair().unwrap();
    drop(std::mem::replace(&mut world.host, host));
    world.harness.settle(); // comes to rest
    world.send(1000, 77, Op::Request);
    world.expect(Op::Reset);
}

#[test]
fn host_reaches_a_guest_port() {
    let mut world = World::new();
    let (mut stream, host_port) = world.calling(9, 22);
    stream.write_all(b"early").unwrap();
    assert!(world.receive().is_none());
    world.send(host_port, 22, Op::Response);
    assert_eq!(world.next_message().0, FromDevice::Connected { id: 9 });
    assert_eq!(world.receive().unwrap().1, b"early");
    world.send_data(host_port, 22, b"answer");
    assert_eq!(read_available(&mut stream), b"answer");
}

#[test]
fn host_is_told_that_the_guest_refuses() {
    let mut world = World::new();
    let (mut stream, host_port) = world.calling(9, 22);
    world.send(host_port, 22, Op::Reset);
    assert_eq!(world.next_message().0, FromDevice::Refused { id: 9 });
    assert!(is_at_end(&mut stream));
}

#[test]
fn host_that_gives_up_before_the_answer_resets() {
    let mut world = World::new();
    let (stream, host_port) = world.calling(9, 22);
    drop(stream);
    let reset = world.expect(Op::Reset);
    assert_eq!(reset.src_port, host_port);
    assert_eq!(world.next_message().0, FromDevice::Refused { id: 9 });
    world.send(host_port, 22, Op::Response);
    world.expect(Op::Reset);
}

#[test]
fn host_calls_on_one_guest_port_have_ports_of_their_own() {
    let mut world = World::new();
    let (_one, first) = world.calling(1, 22);
    let (_two, second) = world.calling(2, 22);
    assert_ne!(first, second);
}

#[test]
fn host_connect_without_a_stream_is_refused() {
    let mut world = World::new();
    world
        .host
        .send(
            &ToDevice::Connect {
                id: 3,
                guest_port: 22,
            },
            None,
        )
        .unwrap();
    assert_eq!(world.next_message().0, FromDevice::Refused { id: 3 });
}

#[test]
fn half_close_by_the_guest_ends_the_hosts_input_only() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    world.send_data(1000, 77, b"last words");
    world.send_shutdown(1000, 77, SHUTDOWN_SEND);
    assert_eq!(read_available(&mut stream), b"last words");
    assert!(is_at_end(&mut stream));
    stream.write_all(b"still listening?").unwrap();
    assert_eq!(world.receive().unwrap().1, b"still listening?");
    drop(stream);
    assert_eq!(world.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
}

#[test]
fn half_close_by_the_host_ends_the_guests_input_only() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(world.receive().unwrap().1, b"last words");
    assert_eq!(world.expect(Op::Shutdown).flags, SHUTDOWN_SEND);
    world.send_data(1000, 77, b"still listening?");
    assert_eq!(read_available(&mut stream), b"still listening?");
    drop(stream);
    assert_eq!(world.expect(Op::Shutdown).flags, SHUTDOWN_BOTH);
}

#[test]
fn close_by_the_host_reaches_the_guest_after_the_data() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    let data = pattern(100_000, 1);
    stream.set_nonblocking(false).unwrap();
    stream.write_all(&data).unwrap();
    drop(stream);
    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(world.receive().unwrap().1);
    }
    assert!(received == data);
    assert_eq!(
        world.expect(Op::Shutdown).flags & SHUTDOWN_SEND,
        SHUTDOWN_SEND
    );
    world.send_shutdown(1000, 77, SHUTDOWN_BOTH);
    while world
        .receive()
        .is_some_and(|(header, _)| header.op != Some(Op::Reset))
    {}
}

#[test]
fn close_by_the_guest_is_confirmed_and_its_data_still_arrives() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    let data = pattern(250_000, 1);
    for chunk in data.chunks(50_000) {
        world.send_data(1000, 77, chunk);
    }
    world.send_shutdown(1000, 77, SHUTDOWN_BOTH);
    while world.receive().unwrap().0.op != Some(Op::Reset) {}
    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(read_available(&mut stream));
        world.harness.settle();
    }
    assert!(received == data);
    assert!(is_at_end(&mut stream));
    // The ports are free again.
    world.send(1000, 77, Op::Request);
    world.expect(Op::Response);
}

#[test]
fn reset_by_the_guest_closes_the_stream() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    world.send(1000, 77, Op::Reset);
    assert!(is_at_end(&mut stream));
    assert!(world.receive().is_none());
}

#[test]
fn guest_that_receives_no_more_breaks_the_hosts_pipe() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    world.send_shutdown(1000, 77, SHUTDOWN_RECEIVE);
    assert_eq!(
        stream.write(b"x").unwrap_err().kind(),
        ErrorKind::BrokenPipe
    );
    world.send_data(1000, 77, b"but sends");
    assert_eq!(read_available(&mut stream), b"but sends");
}

#[test]
fn data_after_the_host_has_gone_is_answered_with_a_shutdown() {
    let mut world = World::new();
    drop(world.connected(1000, 77));
    let flags = world.expect(Op::Shutdown).flags;
    assert_eq!(flags, SHUTDOWN_BOTH);
    world.send_data(1000, 77, b"nobody");
    world.send(1000, 77, Op::Reset);
    assert!(world.receive().is_none());
}

#[test]
fn credit_of_the_guest_is_never_exceeded() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    let small = |fwd_cnt| Header {
        buf_alloc: 5000,
        fwd_cnt,
        ..World::packet(1000, 77, Op::CreditUpdate)
    };
    world.send_raw(small(0), b"");
    let data = pattern(20_000, 3);
    stream.write_all(&data).unwrap();
    let mut received = Vec::new();
    loop {
        let before = received.len();
        while let Some((header, data)) = world.receive() {
            assert!(matches!(header.op, Some(Op::ReadWrite | Op::CreditRequest)));
            received.extend(data);
        }
        assert!(received.len() - before <= 5000);
        if received.len() == data.len() {
            break;
        }
        assert_eq!(received.len() % 5000, 0);
        world.send_raw(small(received.len() as u32), b"");
    }
    assert!(received == data);
}

#[test]
fn credit_requested_by_the_guest_is_told() {
    let mut world = World::new();
    let _stream = world.connected(1000, 77);
    world.send(1000, 77, Op::CreditRequest);
    let update = world.expect(Op::CreditUpdate);
    assert_eq!((update.buf_alloc, update.fwd_cnt), (256 << 10, 0));
}

#[test]
fn credit_is_given_back_as_the_host_reads() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    let data = pattern(2_000_000, 7);
    let (mut sent, mut known, mut received) = (0usize, 0u32, Vec::new());
    while received.len() < data.len() {
        while sent < data.len() {
            let credit = (256 << 10) - (sent as u32).wrapping_sub(known) as usize;
            let chunk = credit.min(60_000).min(data.len() - sent);
            if chunk == 0 {
                break;
            }
            world.send_data(1000, 77, &data[sent..sent + chunk]);
            sent += chunk;
        }
        received.extend(read_available(&mut stream));
        while let Some((header, _)) = world.receive() {
            assert_eq!(header.op, Some(Op::CreditUpdate));
            known = header.fwd_cnt;
        }
    }
    assert!(received == data);
    assert_eq!(world.metrics.violations(), 0);
    assert_eq!(world.metrics.from_guest_bytes(), 2_000_000);
}

#[test]
fn credit_exceeded_by_the_guest_resets_its_connection_only() {
    let mut world = World::new();
    let mut other = world.connected(1000, 78);
    let _stream = world.connected(1000, 77);
    let chunk = vec![1; 60_000];
    loop {
        world.send_data(1000, 77, &chunk);
        match world.receive() {
            Some((header, _)) if header.op == Some(Op::Reset) => break,
            Some(_) => {}
            None => {}
        }
    }
    assert_eq!(world.metrics.violations(), 1);
    world.send_data(1000, 78, b"fine");
    assert_eq!(read_available(&mut other), b"fine");
}

#[test]
fn input_waits_for_the_guests_buffers_without_spinning() {
    let mut world = World::new();
    let mut stream = world.connected(1000, 77);
    while world.harness.queues[0].take_used().is_some() {}
    let data = pattern(600_000, 2);
    let mut written = 0;
    for _ in 0..10 {
        while let Ok(count) = stream.write(&data[written..]) {
            written += count;
            if written == data.len() {
                break;
            }
        }
        world.harness.settle(); // comes to rest, although there is input
    }
    let mut received: Vec<u8> = Vec::new();
    while received.len() < data.len() {
        while let Some(bytes) = world.harness.queues[0].take_written() {
            let header = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
            if header.op == Some(Op::ReadWrite) {
                received.extend(&bytes[HEADER..]);
            }
            world.harness.queues[0].add(&[Buffer::Writable(4096)]);
        }
        let credit = Header {
            fwd_cnt: received.len() as u32,
            ..World::packet(1000, 77, Op::CreditUpdate)
        };
        world.send_raw(credit, b"");
        world.harness.kick(RECEIVE);
        while written < data.len() {
            match stream.write(&data[written..]) {
                Ok(count) => written += count,
                Err(_) => break,
            }
        }
        world.harness.settle();
    }
    assert!(received == data);
}

#[test]
fn a_thousand_connections_at_once_keep_their_data_apart() {
    let mut world = World::new();
    world.listen(1000);
    let mut streams = HashMap::new();
    for guest_port in 0..1000 {
        world.send(1000, guest_port, Op::Request);
        world.expect(Op::Response);
        let (message, stream) = world.next_message();
        assert_eq!(
            message,
            FromDevice::Accepted {
                host_port: 1000,
                guest_port
            }
        );
        streams.insert(guest_port, UnixStream::from(stream.unwrap()));
    }
    for (guest_port, stream) in &mut streams {
        stream.write_all(&pattern(9000, *guest_port)).unwrap();
    }
    let mut received: HashMap<u32, Vec<u8>> = HashMap::new();
    while received.values().map(Vec::len).sum::<usize>() < 9_000_000 {
        world.harness.kick(RECEIVE);
        let (header, data) = world.receive().unwrap();
        received.entry(header.dst_port).or_default().extend(data);
    }
    for guest_port in 0..1000 {
        assert!(received[&guest_port] == pattern(9000, guest_port));
        world.send_data(1000, guest_port, &guest_port.to_le_bytes());
        world.send_shutdown(1000, guest_port, SHUTDOWN_BOTH);
        while world.receive().unwrap().0.op != Some(Op::Reset) {}
        let mut all = Vec::new();
        streams
            .get_mut(&guest_port)
            .unwrap()
            .read_to_end(&mut all)
            .unwrap();
        assert_eq!(all, guest_port.to_le_bytes());
    }
}

#[test]
fn connections_beyond_the_accept_queue_are_refused_not_lost() {
    let mut world = World::new();
    world.listen(1000);
    let (mut accepted, mut refused) = (0, 0);
    for guest_port in 0..2000 {
        world.send(1000, guest_port, Op::Request);
        match world.receive().unwrap().0.op {
            Some(Op::Response) => accepted += 1,
            Some(Op::Reset) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(accepted >= 10 && refused > 0, "{accepted} {refused}");
    let mut handed_over = 0;
    while world.host.receive::<FromDevice>().is_ok() {
        handed_over += 1;
    }
    assert_eq!(handed_over, accepted);
}

#[test]
fn packet_to_another_address_or_of_another_kind_is_refused() {
    let mut world = World::new();
    world.listen(1000);
    let request = World::packet(1000, 77, Op::Request);
    world.send_raw(
        Header {
            dst_cid: 3,
            ..request
        },
        b"",
    );
    let bytes = world.harness.queues[0].take_written().unwrap();
    let reset = Header::from_bytes(bytes[..HEADER].try_into().unwrap());
    assert_eq!((reset.op, reset.src_cid), (Some(Op::Reset), 3));
    world.send_raw(Header { kind: 2, ..request }, b"");
    assert_eq!(world.expect(Op::Reset).kind, 2);
    world.send_raw(
        Header {
            src_cid: 6,
            ..request
        },
        b"",
    );
    assert!(world.receive().is_none());
}

#[test]
fn packet_without_a_connection_is_refused_but_a_reset_is_not_answered() {
    let mut world = World::new();
    for op in [
        Op::Response,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::CreditRequest,
    ] {
        world.send(1000, 77, op);
        world.expect(Op::Reset);
    }
    world.send_data(1000, 77, b"x");
    world.expect(Op::Reset);
    world.send(1000, 77, Op::Reset);
    assert!(world.receive().is_none());
}

#[test]
fn packet_that_does_not_fit_its_connection_ends_it() {
    for op in [Some(Op::Request), Some(Op::Response), None] {
        let mut world = World::new();
        let mut stream = world.connected(1000, 77);
        world.send_raw(
            Header {
                op,
                ..World::packet(1000, 77, Op::Request)
            },
            b"",
        );
        world.expect(Op::Reset);
        assert!(is_at_end(&mut stream));
    }
}

#[test]
fn packet_longer_than_its_buffers_needs_reset() {
    let mut world = World::new();
    let _stream = world.connected(1000, 77);
    let header = Header {
        len: 100,
        ..World::packet(1000, 77, Op::ReadWrite)
    };
    world.harness.queues[1].add(&[Buffer::Readable(&header.to_bytes()), Buffer::Readable(b"x")]);
    world.harness.kick(TRANSMIT);
    assert_eq!(world.harness.interrupt.reset_requests(), 1);
}

#[test]
fn packet_shorter_than_a_header_needs_reset() {
    let mut world = World::new();
    world.harness.queues[1].add(&[Buffer::Readable(&[0; 43])]);
    world.harness.kick(TRANSMIT);
    assert_eq!(world.harness.interrupt.reset_requests(), 1);
}

#[test]
fn receive_buffer_without_room_needs_reset() {
    let (host, device) = ControlSocket::pair().unwrap();
    let vsock = Vsock::new(CID, Box::new(ControlPorts::new(device))).unwrap();
    let mut harness = Harness::started(vsock);
    harness.queues[0].add(&[Buffer::Writable(40)]);
    let (_ours, theirs) = UnixStream::pair().unwrap();
    host.send(
        &ToDevice::Connect {
            id: 1,
            guest_port: 2,
        },
        Some(theirs.as_fd()),
    )
    .unwrap();
    harness.settle();
    assert_eq!(harness.interrupt.reset_requests(), 1);
    let answer = host.receive::<FromDevice>().unwrap().0;
    assert_eq!(answer, FromDevice::Refused { id: 1 });
}

#[test]
fn flood_without_receive_buffers_stops_being_read() {
    let (_host, device) = ControlSocket::pair().unwrap();
    let vsock = Vsock::new(CID, Box::new(ControlPorts::new(device))).unwrap();
    let mut harness = Harness::started(vsock);
    let request = World::packet(1, 2, Op::Request).to_bytes();
    for _ in 0..20 {
        for _ in 0..200 {
            if harness.queues[1].free() > 0 {
                harness.queues[1].add(&[Buffer::Readable(&request)]);
            }
        }
        harness.kick(TRANSMIT);
        while harness.queues[1].take_used().is_some() {}
    }
    assert_eq!(harness.queues[1].used_index(), 1024);
    for _ in 0..16 {
        while harness.queues[0].free() > 0 {
            harness.queues[0].add(&[Buffer::Writable(64)]);
        }
        harness.kick(RECEIVE);
        while harness.queues[0].take_used().is_some() {}
    }
    assert!(harness.queues[1].used_index() > 1024);
    assert_eq!(harness.interrupt.reset_requests(), 0);
}

#[test]
fn descriptor_beyond_memory_needs_reset() {
    let mut world = World::new();
    world.harness.queues[1].set_descriptor(200, u64::MAX - 100, 44, 0, 0);
    world.harness.queues[1].offer(200);
    world.harness.kick(TRANSMIT);
    assert_eq!(world.harness.interrupt.reset_requests(), 1);
}

#[test]
fn restored_device_tells_its_guest_that_connections_are_gone() {
    let mut world = World::new();
    let _stream = world.connected(1000, 77);
    world.harness.mount.pause().unwrap();
    let state = world.harness.mount.save().unwrap();

    let (_host, device) = ControlSocket::pair().unwrap();
    let vsock = Vsock::new(9, Box::new(ControlPorts::new(device))).unwrap();
    let mut harness = Harness::new(vsock);
    harness.mount.restore(&state).unwrap();
    harness.activate().unwrap();
    harness.settle();
    harness.queues[2].add(&[Buffer::Writable(4)]);
    harness.kick(2);
    assert_eq!(harness.queues[2].take_written().unwrap(), [0; 4]);
    let mut cid = [0; 8];
    harness.mount.read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 9);
}

#[test]
fn addresses_that_are_reserved_are_rejected() {
    for cid in [0, 1, 2, u64::from(u32::MAX), u64::MAX] {
        let (_host, device) = ControlSocket::pair().unwrap();
        let result = Vsock::new(cid, Box::new(ControlPorts::new(device)));
        assert!(matches!(result.map(|_| ()), Err(VsockError::Cid(found)) if found == cid));
    }
}

#[test]
fn header_survives_its_bytes() {
    let header = Header {
        src_cid: u64::MAX - 1,
        dst_cid: 0x0102_0304_0506_0708,
        src_port: 1,
        dst_port: u32::MAX,
        len: 0x0a0b_0c0d,
        kind: 1,
        op: Some(Op::CreditRequest),
        flags: 3,
        buf_alloc: 4,
        fwd_cnt: 5,
    };
    assert_eq!(Header::from_bytes(&header.to_bytes()), header);
}
