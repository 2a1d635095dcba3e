use std::os::fd::OwnedFd;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::config::*;
use super::*;
use crate::testing::{Buffer, Harness, desc};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONFIG: NetConfig = NetConfig {
    mac: [0x52, 0xca, 1, 2, 3, 4],
    mtu: 1500,
};

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap()
}

fn started() -> (Harness, NetHandle, OwnedFd) {
    started_with(FEATURES)
}

fn started_with(features: u64) -> (Harness, NetHandle, OwnedFd) {
    let (theirs, ours) = pair();
    let (net, handle) = Net::new(CONFIG, theirs).unwrap();
    let mut harness = Harness::new(net).with_features(features);
    harness.activate().unwrap();
    harness.settle();
    assert_eq!(next(&ours).unwrap().len(), HEADER + 2); // what the driver takes
    (harness, handle, ours)
}

/// The next message at the network's end.
fn next(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 1 << 17];
    let received = recv(socket, &mut buffer[..], RecvFlags::DONTWAIT);
    let (len, _) = received.ok().filter(|(len, _)| *len > 0)?;
    Some(buffer[..len].to_vec())
}

fn give(socket: &OwnedFd, message: &[u8]) {
    let sent = send(socket, message, SendFlags::DONTWAIT).unwrap();
    assert_eq!(sent, message.len());
}

fn message(len: usize) -> Vec<u8> {
    let frame = (0..len - HEADER).map(|at| (at % 251) as u8);
    [0; HEADER].into_iter().chain(frame).collect()
}

/// Fills the socket from the device's side, so that its next message does not fit.
fn fill(harness: &mut Harness) -> usize {
    let frame = message(60_000);
    let mut offered = 0;
    loop {
        harness.queues[1].add(&[Buffer::Readable(&frame)]);
        offered += 1;
        harness.kick(TRANSMIT);
        if usize::from(harness.queues[1].used_index()) < offered {
            return offered;
        }
    }
}

#[test]
fn net_frame_reaches_the_socket_with_its_header() {
    let (mut harness, handle, host) = started();
    let sent = message(100);

    harness.queues[1].add(&[Buffer::Readable(&sent[..12]), Buffer::Readable(&sent[12..])]);
    harness.kick(TRANSMIT);

    assert_eq!(next(&host).unwrap(), sent);
    assert_eq!(harness.queues[1].used_index(), 1);
    assert_eq!(handle.metrics().sent_frames(), 1);
    assert_eq!(handle.metrics().sent_bytes(), 88);
}

#[test]
fn net_frames_keep_their_order_over_many_turns() {
    let (mut harness, _handle, host) = started();
    let frame = |at: u8| [&[0; HEADER][..], &[at; 20]].concat();
    for at in 0..200u8 {
        harness.queues[1].add(&[Buffer::Readable(&frame(at))]);
    }

    harness.kick(TRANSMIT);

    let mut got = Vec::new();
    while got.len() < 200 {
        match next(&host) {
            Some(message) => got.push(message),
            None => harness.settle(),
        }
    }
    let expected: Vec<_> = (0..200).map(frame).collect();
    assert_eq!(got, expected);
}

#[test]
fn net_frame_of_64_kib_passes_both_ways() {
    let (mut harness, _handle, host) = started();
    let mut large = message(MAX_MESSAGE);
    harness.queues[1].add(&[Buffer::Readable(&large)]);
    harness.kick(TRANSMIT);
    assert_eq!(next(&host).unwrap(), large);

    for _ in 0..50 {
        harness.queues[0].add(&[Buffer::Writable(1536)]);
    }
    harness.kick(RECEIVE);
    large[0] = 1;
    large[1] = 1;
    give(&host, &large);
    harness.settle();

    let buffers = MAX_MESSAGE.div_ceil(1536);
    assert_eq!(usize::from(harness.queues[0].used_index()), buffers);
    large[10..12].copy_from_slice(&(buffers as u16).to_le_bytes());
    let mut got = Vec::new();
    while let Some(part) = harness.queues[0].take_written() {
        got.extend(part);
    }
    assert!(got == large);
}

#[test]
fn net_frames_too_short_or_too_long_to_be_one_are_handed_back_unsent() {
    let (mut harness, handle, host) = started();
    // The first one would be what the driver takes, were it let through.
    for len in [14, 0, HEADER + ETHERNET - 1, MAX_MESSAGE + 1] {
        let bytes = vec![1; len];
        harness.queues[1].add(&[Buffer::Readable(&bytes)]);
        harness.queues[1].add(&[Buffer::Readable(&message(64))]);
    }
    harness.queues[1].add(&[Buffer::Writable(64)]);

    harness.kick(TRANSMIT);

    for _ in 0..4 {
        assert_eq!(next(&host).unwrap(), message(64));
    }
    assert_eq!(next(&host), None);
    assert_eq!(harness.queues[1].used_index(), 9);
    assert_eq!(handle.metrics().sent_dropped(), 5);
}

#[test]
fn net_full_socket_holds_frames_back_without_loss_and_without_spinning() {
    let (mut harness, handle, host) = started();
    let offered = fill(&mut harness); // comes to rest
    assert!(handle.metrics().send_stalls() >= 1);

    let mut got = 0;
    while got < offered {
        match next(&host) {
            Some(_) => got += 1,
            None => harness.settle(),
        }
    }

    harness.settle();
    assert_eq!(usize::from(harness.queues[1].used_index()), offered);
}

#[test]
fn net_frame_fills_the_guests_buffers_and_says_how_many() {
    let (mut harness, handle, host) = started();
    for _ in 0..4 {
        harness.queues[0].add(&[Buffer::Writable(40)]);
    }
    harness.kick(RECEIVE);

    give(&host, &message(100));
    harness.settle();

    let parts: Vec<_> = std::iter::from_fn(|| harness.queues[0].take_written()).collect();
    let mut expected = message(100);
    expected[10] = 3;
    assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [40, 40, 20]);
    assert_eq!(parts.concat(), expected);
    assert_eq!(handle.metrics().received_frames(), 1);
    assert_eq!(handle.metrics().received_bytes(), 88);
}

#[test]
fn net_frames_without_guest_buffers_stay_in_the_socket() {
    let (mut harness, handle, host) = started();
    harness.queues[0].add(&[Buffer::Writable(64)]);
    harness.kick(RECEIVE);
    for len in [64, 65, 66] {
        give(&host, &message(len));
    }
    harness.settle(); // comes to rest, although there are frames
    assert_eq!(harness.queues[0].used_index(), 1);
    assert!(handle.metrics().receive_stalls() >= 1);

    for _ in 0..4 {
        harness.queues[0].add(&[Buffer::Writable(64)]);
    }
    harness.kick(RECEIVE);

    assert_eq!(harness.queues[0].used_index(), 5);
    assert_eq!(handle.metrics().received_dropped(), 0);
}

#[test]
fn net_driver_without_mergeable_buffers_gets_each_frame_in_one() {
    let (mut harness, handle, host) = started_with(FEATURES & !F_MRG_RXBUF);
    harness.queues[0].add(&[Buffer::Writable(12), Buffer::Writable(100)]);
    harness.queues[0].add(&[Buffer::Writable(200)]);
    harness.kick(RECEIVE);

    give(&host, &message(150)); // too long for the first one, which is used for the next frame
    give(&host, &message(112));
    harness.settle();

    let mut expected = message(112);
    expected[10] = 1;
    assert_eq!(harness.queues[0].take_written().unwrap(), expected);
    assert_eq!(handle.metrics().received_dropped(), 1);
    assert_eq!(harness.queues[0].used_index(), 1);
}

#[test]
fn net_frame_longer_than_all_buffers_of_the_queue_does_not_hold_up_the_next() {
    let (mut harness, handle, host) = started();
    while harness.queues[0].free() > 0 {
        harness.queues[0].add(&[Buffer::Writable(20)]);
    }
    harness.kick(RECEIVE);

    give(&host, &message(20 * 256 + 1));
    give(&host, &message(40));
    harness.settle();

    assert_eq!(harness.queues[0].used_index(), 2);
    assert_eq!(handle.metrics().received_dropped(), 1);
}

#[test]
fn net_frame_with_offloads_that_were_not_negotiated_is_dropped() {
    let (mut harness, handle, host) = started_with(F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4);
    for _ in 0..4 {
        harness.queues[0].add(&[Buffer::Writable(100)]);
    }
    harness.kick(RECEIVE);
    for (flags, kind) in [(1, 4), (1, 3), (1, 5), (0, 9)] {
        let mut message = message(60);
        (message[0], message[1]) = (flags, kind);
        give(&host, &message);
    }
    let mut taken = message(60);
    (taken[0], taken[1]) = (0xff, 1);
    give(&host, &taken);
    harness.settle();

    assert_eq!(handle.metrics().received_dropped(), 4);
    let got = harness.queues[0].take_written().unwrap();
    assert_eq!(got[..2], [3, 1]); // flags that do not exist are gone
}

#[test]
fn net_unfinished_checksum_reaches_no_driver_that_does_not_finish_it() {
    let (mut harness, handle, host) = started_with(F_MRG_RXBUF);
    harness.queues[0].add(&[Buffer::Writable(100)]);
    harness.kick(RECEIVE);
    let mut unfinished = message(60);
    unfinished[0] = 1;
    give(&host, &unfinished);
    let mut checked = message(60);
    checked[0] = 2;
    give(&host, &checked);
    harness.settle();

    assert_eq!(handle.metrics().received_dropped(), 1);
    assert_eq!(harness.queues[0].take_written().unwrap()[0], 0);
}

#[test]
fn net_messages_that_are_no_frame_are_dropped() {
    let (mut harness, handle, host) = started();
    for _ in 0..3 {
        harness.queues[0].add(&[Buffer::Writable(1 << 16)]);
    }
    harness.kick(RECEIVE);
    give(&host, &message(HEADER + ETHERNET - 1));
    give(&host, &[1]);
    give(&host, &vec![0; 3 << 16]);
    give(&host, &message(HEADER + ETHERNET));
    harness.settle();

    assert_eq!(handle.metrics().received_dropped(), 3);
    assert_eq!(handle.metrics().received_frames(), 1);
}

#[test]
fn net_tells_the_network_what_each_driver_takes() {
    let all = FEATURES;
    let none = FEATURES & !F_GUEST_CSUM; // without checksums no segments either
    for (features, set) in [
        (all, 7),
        (none, 0),
        (F_GUEST_CSUM, 1),
        (all & !F_GUEST_TSO6, 3),
    ] {
        let (theirs, ours) = pair();
        let (net, _handle) = Net::new(CONFIG, theirs).unwrap();
        let mut harness = Harness::new(net).with_features(features);
        harness.activate().unwrap();
        harness.settle();

        let offer = next(&ours).unwrap();

        assert_eq!(offer[..HEADER], [0; HEADER]);
        assert_eq!(offer[HEADER..], [1, set]);
        harness.mount.reset();
        harness.activate().unwrap();
        harness.settle();
        assert_eq!(next(&ours).unwrap(), offer);
    }
}

#[test]
fn net_offer_to_a_full_socket_goes_out_before_any_frame() {
    let (theirs, host) = pair();
    let mut waiting = 0;
    while send(&theirs, &message(60_000), SendFlags::DONTWAIT).is_ok() {
        waiting += 1;
    }
    let (net, _handle) = Net::new(CONFIG, theirs).unwrap();
    let mut harness = Harness::new(net);
    harness.activate().unwrap();
    harness.queues[1].add(&[Buffer::Readable(&message(60_012))]);
    harness.kick(TRANSMIT); // comes to rest
    assert_eq!(harness.queues[1].used_index(), 0);

    let mut lens = Vec::new();
    while lens.len() < waiting + 2 {
        match next(&host) {
            Some(message) => lens.push(message.len()),
            None => harness.settle(),
        }
    }

    assert_eq!(lens[waiting..], [HEADER + 2, 60_012]);
}

#[test]
fn net_other_side_gone_takes_the_link_down_and_lets_the_guest_go_on() {
    let (mut harness, handle, host) = started();
    assert!(handle.link_is_up());
    fill(&mut harness);

    drop(host);
    harness.settle(); // comes to rest
    harness.queues[1].add(&[Buffer::Readable(&message(64))]);
    harness.queues[0].add(&[Buffer::Writable(64)]);
    harness.kick(TRANSMIT);
    harness.kick(RECEIVE);

    assert!(!handle.link_is_up());
    let mut config = [0; 12];
    harness.mount.read_config(0, &mut config);
    assert_eq!(config[6], 0);
    assert_eq!(harness.interrupt.config_signals(), 1);
    assert_eq!(harness.interrupt.reset_requests(), 0);
    let all_back = harness.queues[1].free() + usize::from(harness.queues[1].used_index());
    assert_eq!(all_back, 256);
}

#[test]
fn net_other_side_gone_is_noticed_by_a_guest_that_does_nothing() {
    let (mut harness, handle, host) = started();

    drop(host);
    harness.settle();

    assert!(!handle.link_is_up());
    assert_eq!(harness.interrupt.config_signals(), 1);
}

#[test]
fn net_frames_sent_before_the_other_side_went_arrive() {
    let (mut harness, handle, host) = started();
    give(&host, &message(64));
    harness.settle();
    drop(host);
    harness.settle(); // comes to rest, although the guest has no buffers

    harness.queues[0].add(&[Buffer::Writable(64)]);
    harness.kick(RECEIVE);

    assert_eq!(harness.queues[0].used_index(), 1);
    assert!(!handle.link_is_up());
}

#[test]
fn net_configuration_tells_address_link_and_mtu() {
    let (harness, _handle, _host) = started();
    let mut config = [9; 14];

    harness.mount.read_config(0, &mut config);

    let mtu = 1500u16.to_le_bytes();
    assert_eq!(
        config,
        [0x52, 0xca, 1, 2, 3, 4, 1, 0, 1, 0, mtu[0], mtu[1], 0, 0]
    );
}

#[test]
fn net_configuration_that_is_none_is_refused() {
    for config in [
        NetConfig {
            mac: [1, 0, 0, 0, 0, 0],
            ..CONFIG
        },
        NetConfig {
            mtu: 1279,
            ..CONFIG
        },
        NetConfig {
            mtu: u16::MAX,
            ..CONFIG
        },
    ] {
        assert!(Net::new(config, pair().0).is_err());
    }
}

#[test]
fn net_buffer_beyond_memory_needs_reset() {
    for (queue, flags) in [(RECEIVE, desc::WRITE), (TRANSMIT, 0)] {
        let (mut harness, _handle, host) = started();
        give(&host, &message(64));
        let driver = &mut harness.queues[usize::from(queue)];
        driver.set_descriptor(0, u64::MAX - 64, 64, flags, 0);
        driver.offer(0);

        harness.kick(queue);

        assert_eq!(harness.interrupt.reset_requests(), 1);
    }
}

#[test]
fn net_receive_buffer_smaller_than_the_header_needs_reset() {
    let (mut harness, _handle, host) = started();
    give(&host, &message(64));
    harness.queues[0].add(&[Buffer::Writable(11)]);

    harness.kick(RECEIVE);

    assert_eq!(harness.interrupt.reset_requests(), 1);
}

#[test]
fn net_pause_gives_unfilled_buffers_back_and_resume_uses_them() {
    let (mut harness, _handle, host) = started();
    for _ in 0..3 {
        harness.queues[0].add(&[Buffer::Writable(100)]);
    }
    harness.kick(RECEIVE);

    harness.mount.pause().unwrap();
    let states = harness.mount.queue_states();
    give(&host, &message(80));
    harness.settle(); // comes to rest, although there is a frame
    let while_paused = harness.queues[0].used_index();
    harness.mount.resume();
    harness.settle();

    assert_eq!(states[0].next_available, 0);
    assert_eq!(while_paused, 0);
    assert_eq!(harness.queues[0].used_index(), 1);
}

#[test]
fn net_state_moved_to_another_device_keeps_its_address() {
    let (harness, _handle, _host) = started();
    harness.mount.pause().unwrap();
    let state = harness.mount.save().unwrap();
    let other = NetConfig {
        mac: [2; 6],
        mtu: 9000,
    };
    let (net, _other_handle) = Net::new(other, pair().0).unwrap();
    let harness = Harness::new(net);

    harness.mount.restore(&state).unwrap();

    let mut mac = [0; 6];
    harness.mount.read_config(0, &mut mac);
    assert_eq!(mac, CONFIG.mac);
}
