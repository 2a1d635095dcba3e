use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use super::*;
use crate::testing::{Buffer, Harness, desc};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

fn started() -> (Harness, ConsoleHandle, UnixStream) {
    let (theirs, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let (console, handle) = Console::new(OwnedFd::from(theirs));
    let mut harness = Harness::started(console);
    harness.settle();
    read_size(&mut harness);
    (harness, handle, ours)
}

/// What Linux does once its probe is through.
fn read_size(harness: &mut Harness) {
    harness.mount.read_config(0, &mut [0; 2]);
    harness.settle();
}

#[test]
fn console_input_waits_until_the_driver_has_read_the_configuration() {
    // Arrange: input is there before the driver is.
    let (theirs, mut host) = UnixStream::pair().unwrap();
    host.write_all(b"early").unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (console, _handle) = Console::new(OwnedFd::from(theirs));
    let mut harness = Harness::started(console);
    harness.queues[0].add(&[Buffer::Writable(64)]);

    // Act
    harness.kick(RECEIVE);
    let held = harness.queues[0].used_index();
    read_size(&mut harness);

    // Assert
    assert_eq!(held, 0);
    assert_eq!(harness.queues[0].used_index(), 1);
}

#[test]
fn console_input_does_not_wait_for_a_driver_that_does_not_look_at_the_size() {
    let (theirs, mut host) = UnixStream::pair().unwrap();
    host.write_all(b"early").unwrap();
    theirs.set_nonblocking(true).unwrap();
    let (console, _handle) = Console::new(OwnedFd::from(theirs));
    let mut harness = Harness::new(console).with_features(0);
    harness.activate().unwrap();
    harness.queues[0].add(&[Buffer::Writable(64)]);

    harness.kick(RECEIVE);

    assert_eq!(harness.queues[0].used_index(), 1);
}

fn read_available(socket: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buf = vec![0; 1 << 20];
    loop {
        match socket.read(&mut buf) {
            Ok(0) => return all,
            Ok(count) => all.extend(&buf[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn console_output_reaches_the_host_in_order() {
    let (mut harness, handle, mut host) = started();
    for at in 0..100u8 {
        harness.queues[1].add(&[Buffer::Readable(&[at]), Buffer::Readable(b".")]);
    }
    harness.kick(TRANSMIT);
    let expected: Vec<u8> = (0..100).flat_map(|at| [at, b'.']).collect();
    assert_eq!(read_available(&mut host), expected);
    assert_eq!(harness.queues[1].used_index(), 100);
    assert_eq!(handle.metrics().output_bytes(), 200);
}

#[test]
fn console_output_is_shown_to_its_watch_once_and_in_order() {
    let (theirs, mut host) = UnixStream::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let seen = Arc::new(Mutex::new(Vec::<u8>::new()));
    let shown = Arc::clone(&seen);
    let (console, _handle) = Console::new(OwnedFd::from(theirs));
    let console = console.watched(move |bytes| shown.lock().unwrap().extend(bytes));
    let mut harness = Harness::started(console);
    let data: Vec<u8> = (0..2_000_000u32).map(|at| (at % 251) as u8).collect();
    for chunk in data.chunks(50_000) {
        harness.queues[1].add(&[Buffer::Readable(&chunk[..7]), Buffer::Readable(&chunk[7..])]);
    }

    harness.kick(TRANSMIT); // the socket takes a part only
    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(read_available(&mut host));
        harness.settle();
    }

    assert!(*seen.lock().unwrap() == data);
}

#[test]
fn console_output_to_a_full_socket_waits_without_loss_and_without_spinning() {
    let (mut harness, handle, mut host) = started();
    let data: Vec<u8> = (0..2_000_000u32).map(|at| (at % 251) as u8).collect();
    for chunk in data.chunks(50_000) {
        harness.queues[1].add(&[Buffer::Readable(chunk)]);
    }
    harness.kick(TRANSMIT); // comes to rest, although the socket is full
    assert!(harness.queues[1].used_index() < 40);
    assert!(handle.metrics().output_stalls() >= 1);

    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(read_available(&mut host));
        harness.settle();
    }
    assert!(received == data);
    assert_eq!(harness.queues[1].used_index(), 40);
}

#[test]
fn console_output_after_the_host_has_gone_is_discarded() {
    let (mut harness, handle, host) = started();
    drop(host);
    for _ in 0..3 {
        harness.queues[1].add(&[Buffer::Readable(b"lost")]);
    }
    harness.kick(TRANSMIT);
    assert_eq!(harness.queues[1].used_index(), 3);
    assert_eq!(handle.metrics().discarded_bytes(), 12);
    harness.kick(RECEIVE);
}

#[test]
fn console_host_gone_while_output_waits_lets_the_guest_go_on() {
    let (mut harness, _handle, host) = started();
    for _ in 0..20 {
        harness.queues[1].add(&[Buffer::Readable(&[7; 50_000])]);
    }
    harness.kick(TRANSMIT);
    assert!(harness.queues[1].used_index() < 20);
    drop(host);
    harness.settle();
    assert_eq!(harness.queues[1].used_index(), 20);
}

#[test]
fn console_output_of_empty_chains_is_handed_back() {
    let (mut harness, _handle, mut host) = started();
    harness.queues[1].add(&[Buffer::Readable(b"")]);
    harness.queues[1].add(&[Buffer::Writable(8)]);
    harness.queues[1].add(&[Buffer::Readable(b"x")]);
    harness.kick(TRANSMIT);
    assert_eq!(harness.queues[1].used_index(), 3);
    assert_eq!(read_available(&mut host), b"x");
}

#[test]
fn console_input_fills_the_guests_buffers() {
    let (mut harness, handle, mut host) = started();
    harness.queues[0].add(&[Buffer::Writable(3), Buffer::Writable(3)]);
    harness.queues[0].add(&[Buffer::Writable(100)]);
    harness.kick(RECEIVE);
    host.write_all(b"hello world").unwrap();
    harness.settle();
    assert_eq!(harness.queues[0].take_written().unwrap(), b"hello ");
    assert_eq!(harness.queues[0].take_written().unwrap(), b"world");
    assert_eq!(handle.metrics().input_bytes(), 11);
}

#[test]
fn console_input_without_guest_buffers_stays_in_the_socket() {
    let (mut harness, handle, mut host) = started();
    harness.queues[0].add(&[Buffer::Writable(4)]);
    harness.kick(RECEIVE);
    host.write_all(b"abcdefgh").unwrap();
    harness.settle(); // comes to rest, although there is input
    assert_eq!(harness.queues[0].take_written().unwrap(), b"abcd");
    assert!(handle.metrics().input_stalls() >= 1);
    harness.queues[0].add(&[Buffer::Writable(4)]);
    harness.kick(RECEIVE);
    assert_eq!(harness.queues[0].take_written().unwrap(), b"efgh");
}

#[test]
fn console_input_end_leaves_output_working() {
    let (mut harness, _handle, mut host) = started();
    harness.queues[0].add(&[Buffer::Writable(4)]);
    harness.kick(RECEIVE);
    host.shutdown(std::net::Shutdown::Write).unwrap();
    harness.settle();
    harness.kick(RECEIVE);
    assert_eq!(harness.queues[0].used_index(), 0);
    harness.queues[1].add(&[Buffer::Readable(b"still here")]);
    harness.kick(TRANSMIT);
    assert_eq!(read_available(&mut host), b"still here");
}

#[test]
fn console_input_into_readable_buffers_is_handed_back_empty() {
    let (mut harness, _handle, mut host) = started();
    host.write_all(b"x").unwrap();
    harness.queues[0].add(&[Buffer::Readable(b"no room")]);
    harness.queues[0].add(&[Buffer::Writable(1)]);
    harness.kick(RECEIVE);
    assert_eq!(harness.queues[0].take_used().unwrap().1, 0);
    assert_eq!(harness.queues[0].take_used().unwrap().1, 1);
}

#[test]
fn console_size_is_told_with_an_interrupt() {
    let (harness, handle, _host) = started();
    let before = harness.interrupt.config_signals();
    handle.set_size(132, 50);
    assert_eq!(harness.interrupt.config_signals(), before + 1);
    let mut config = [0; 12];
    harness.mount.read_config(0, &mut config);
    assert_eq!(config, [132, 0, 50, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let mut beyond = [9; 4];
    harness.mount.read_config(10, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn console_size_before_activation_needs_no_interrupt_of_its_own() {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let (console, handle) = Console::new(OwnedFd::from(theirs));
    let harness = Harness::new(console);
    handle.set_size(80, 25);
    assert_eq!(harness.interrupt.config_signals(), 0);
    harness.activate().unwrap();
    // The one that asks the driver to look.
    assert_eq!(harness.interrupt.config_signals(), 1);
}

#[test]
fn console_emergency_write_is_put_out_before_activation() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let (console, _handle) = Console::new(OwnedFd::from(theirs));
    let harness = Harness::new(console);
    harness
        .mount
        .write_config(8, &u32::from(b'!').to_le_bytes());
    let mut byte = [0];
    ours.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
}

#[test]
fn console_buffer_beyond_memory_needs_reset() {
    for queue in [RECEIVE, TRANSMIT] {
        let (mut harness, _handle, _host) = started();
        let driver = &mut harness.queues[usize::from(queue)];
        driver.set_descriptor(
            0,
            u64::MAX - 4,
            4,
            if queue == 0 { desc::WRITE } else { 0 },
            0,
        );
        driver.offer(0);
        harness.kick(queue);
        assert_eq!(harness.interrupt.reset_requests(), 1);
    }
}

#[test]
fn console_reset_keeps_the_socket() {
    let (mut harness, _handle, mut host) = started();
    harness.mount.reset();
    harness.activate().unwrap();
    harness.queues[1].add(&[Buffer::Readable(b"again")]);
    harness.kick(TRANSMIT);
    assert_eq!(read_available(&mut host), b"again");
}

#[test]
fn console_state_moved_while_output_waits_loses_nothing() {
    let (mut harness, handle, mut host) = started();
    handle.set_size(80, 25);
    let data: Vec<u8> = (0..1_000_000u32).map(|at| (at % 249) as u8).collect();
    harness.queues[1].add(&[Buffer::Readable(&data)]);
    harness.kick(TRANSMIT);
    harness.mount.pause().unwrap();
    let state = harness.mount.save().unwrap();
    let mut received = read_available(&mut host);
    assert!(!received.is_empty() && received.len() < data.len());
    let saved: ConsoleState = state.decode(3, 1).unwrap();
    assert_eq!((saved.columns, saved.rows), (80, 25));
    assert_eq!(saved.sent_of_first as usize, received.len());

    let (theirs, mut ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut other = Harness::new(Console::new(OwnedFd::from(theirs)).0);
    other.mount.restore(&state).unwrap();
    other.memory = harness.memory.clone();
    other.activate().unwrap();
    while received.len() < data.len() {
        other.settle();
        received.extend(read_available(&mut ours));
    }
    assert!(received == data);
}
