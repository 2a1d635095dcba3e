use super::*;
use crate::rate::{Rate, RateLimits};
use crate::testing::{Buffer, Harness, desc};

const UNLIMITED: RateLimits = RateLimits {
    bytes: None,
    operations: None,
};

#[test]
fn rng_request_is_filled() {
    let mut harness = Harness::started(Rng::new(UNLIMITED));
    harness.queues[0].add(&[Buffer::Writable(64), Buffer::Writable(64)]);
    harness.kick(0);
    let bytes = harness.queues[0].take_written().unwrap();
    assert_eq!(bytes.len(), 128);
    assert_ne!(bytes[..64], bytes[64..]);
    assert_eq!(harness.interrupt.queue_signals(), 1);
}

#[test]
fn rng_request_of_a_megabyte_is_filled_in_part() {
    let mut harness = Harness::started(Rng::new(UNLIMITED));
    harness.queues[0].add(&[Buffer::Writable(1 << 20)]);
    harness.kick(0);
    assert_eq!(harness.queues[0].take_used().unwrap().1, 64 << 10);
}

#[test]
fn rng_request_without_writable_buffer_is_handed_back_empty() {
    let mut harness = Harness::started(Rng::new(UNLIMITED));
    harness.queues[0].add(&[Buffer::Readable(b"x")]);
    harness.kick(0);
    assert_eq!(harness.queues[0].take_used().unwrap().1, 0);
}

#[test]
fn rng_more_requests_than_a_turn_are_all_filled() {
    let mut harness = Harness::started(Rng::new(UNLIMITED));
    for _ in 0..64 {
        harness.queues[0].add(&[Buffer::Writable(8)]);
    }
    harness.kick(0);
    assert_eq!(harness.queues[0].used_index(), 64);
}

#[test]
fn rng_rate_limit_holds_a_request_until_its_timer() {
    let bytes = Some(Rate {
        per_second: 1000,
        burst: 10,
    });
    let rng = Rng::new(RateLimits {
        bytes,
        operations: None,
    });
    let metrics = rng.metrics();
    let mut harness = Harness::started(rng);
    harness.queues[0].add(&[Buffer::Writable(60)]);
    harness.queues[0].add(&[Buffer::Writable(60)]);
    harness.kick(0);
    assert_eq!(harness.queues[0].used_index(), 1);
    while harness.queues[0].used_index() < 2 {
        harness.wait();
    }
    assert_eq!(metrics.bytes(), 120);
    assert!(metrics.throttled() >= 1);
}

#[test]
fn rng_looping_chain_needs_reset() {
    let mut harness = Harness::started(Rng::new(UNLIMITED));
    harness.queues[0].set_descriptor(0, 0x1000, 8, desc::NEXT | desc::WRITE, 0);
    harness.queues[0].offer(0);
    harness.kick(0);
    assert_eq!(harness.interrupt.reset_requests(), 1);
}

#[test]
fn rng_state_is_read_back() {
    let harness = Harness::new(Rng::new(UNLIMITED));
    let state = harness.mount.save().unwrap();
    harness.mount.restore(&state).unwrap();
}
