use std::os::unix::fs::MetadataExt;

use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryRegion};

use super::config::{F_REPORTING, F_STATISTICS};
use super::*;
use crate::testing::{Buffer, Harness, desc};

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const REPORTING: u16 = 3;
/// Guest memory that no queue of the harness uses.
const FREE: u64 = 32 << 20;

/// The rings themselves take memory when they are used first.
const RING_PAGES: u64 = 16 << 10;

fn started() -> (Harness, BalloonHandle) {
    let (balloon, handle) = Balloon::new().unwrap();
    let mut harness = Harness::started(balloon);
    harness.settle();
    (harness, handle)
}

/// Host memory that the guest takes, in bytes.
fn resident(harness: &Harness) -> u64 {
    let ram = harness.memory.memory();
    let regions = ram.iter();
    regions
        .map(|region| {
            region
                .file_offset()
                .unwrap()
                .file()
                .metadata()
                .unwrap()
                .blocks()
                * 512
        })
        .sum()
}

fn numbers(pages: impl Iterator<Item = u64>) -> Vec<u8> {
    pages.flat_map(|page| (page as u32).to_le_bytes()).collect()
}

fn statistic(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn inflate_gives_the_memory_back_to_the_host() {
    let (mut harness, handle) = started();
    harness.queues[0].write(FREE, &vec![1; 4 << 20]);
    let before = resident(&harness);
    let pages = numbers((FREE >> 12)..(FREE >> 12) + 512);
    harness.queues[0].add(&[Buffer::Readable(&pages)]);
    harness.kick(INFLATE);
    assert_eq!(harness.queues[0].take_used().unwrap().1, 0);
    assert!(before - resident(&harness) >= (2 << 20) - RING_PAGES);
    assert_eq!(handle.metrics().inflated_bytes(), 2 << 20);
    assert_eq!(harness.queues[0].read(FREE, 16), [0; 16]);
    assert_eq!(harness.queues[0].read(FREE + (2 << 20), 16), [1; 16]);
}

#[test]
fn inflate_takes_pages_in_any_order() {
    let (mut harness, handle) = started();
    harness.queues[0].write(FREE, &vec![1; 1 << 20]);
    let page = FREE >> 12;
    let pages = [page + 3, page + 2, page + 1, page + 9, page + 10, page + 20];
    harness.queues[0].add(&[Buffer::Readable(&numbers(pages.into_iter()))]);
    harness.kick(INFLATE);
    assert_eq!(handle.metrics().inflated_bytes(), 6 * 4096);
    for at in 0..24 {
        let zero = harness.queues[0].read(FREE + at * 4096, 1) == [0];
        assert_eq!(zero, pages.contains(&(page + at)), "page {at}");
    }
}

#[test]
fn inflate_of_pages_that_are_not_there_is_ignored() {
    let (mut harness, handle) = started();
    let pages = numbers([1 << 20, 0xffff_ffff, FREE >> 12].into_iter());
    harness.queues[0].add(&[Buffer::Readable(&pages), Buffer::Readable(&[1, 2, 3])]);
    harness.kick(INFLATE);
    assert_eq!(handle.metrics().rejected_pages(), 2);
    assert_eq!(handle.metrics().inflated_bytes(), 4096);
    assert_eq!(harness.interrupt.reset_requests(), 0);
}

#[test]
fn inflate_of_too_many_pages_needs_reset() {
    let (mut harness, _handle) = started();
    harness.queues[0].set_descriptor(0, FREE, 4 * 65_536 + 4, 0, 0);
    harness.queues[0].offer(0);
    harness.kick(INFLATE);
    assert_eq!(harness.interrupt.reset_requests(), 1);
}

#[test]
fn deflate_is_acknowledged() {
    let (mut harness, handle) = started();
    let pages = numbers((FREE >> 12)..(FREE >> 12) + 10);
    harness.queues[1].add(&[Buffer::Readable(&pages)]);
    harness.kick(DEFLATE);
    assert!(harness.queues[1].take_used().is_some());
    assert_eq!(handle.metrics().deflated_bytes(), 40_960);
}

#[test]
fn report_of_free_pages_gives_whole_pages_back() {
    let (mut harness, handle) = started();
    harness.queues[3].write(FREE, &vec![1; 4 << 20]);
    let before = resident(&harness);
    harness.queues[3].set_descriptor(0, FREE, 2 << 20, desc::WRITE | desc::NEXT, 1);
    harness.queues[3].set_descriptor(1, FREE + (3 << 20) + 100, 8192, desc::WRITE, 0);
    harness.queues[3].offer(0);
    harness.kick(REPORTING);
    assert_eq!(harness.queues[3].used_index(), 1);
    assert_eq!(handle.metrics().reported_bytes(), (2 << 20) + 4096);
    assert!(before - resident(&harness) >= (2 << 20) + 4096 - RING_PAGES);
    assert_eq!(harness.queues[3].read(FREE + (3 << 20), 4096), [1; 4096]);
}

#[test]
fn optional_queues_move_up_where_one_is_missing() {
    let (balloon, handle) = Balloon::new().unwrap();
    let mut harness = Harness::new(balloon).with_features(F_REPORTING);
    harness.activate().unwrap();
    harness.queues[2].set_descriptor(0, FREE, 4096, desc::WRITE, 0);
    harness.queues[2].offer(0);
    harness.kick(2);
    assert_eq!(handle.metrics().reported_bytes(), 4096);
    assert!(!handle.request_statistics());
    assert_eq!(
        config::role(2, F_STATISTICS),
        Some(config::Role::Statistics)
    );
    assert_eq!(config::role(3, F_STATISTICS), None);
}

#[test]
fn target_is_told_with_an_interrupt_and_the_answer_noticed() {
    let (harness, handle) = started();
    handle.set_target((64 << 20) + 5);
    assert_eq!(harness.interrupt.config_signals(), 1);
    let mut config = [0; 8];
    harness.mount.read_config(0, &mut config);
    assert_eq!(config, [0, 0x40, 0, 0, 0, 0, 0, 0]);
    harness.mount.write_config(4, &100u32.to_le_bytes());
    harness.mount.write_config(0, &7u32.to_le_bytes());
    harness.mount.write_config(4, &[1]);
    assert_eq!((handle.actual(), handle.target()), (409_600, 64 << 20));
    rustix::io::read(handle.changed(), &mut [0u8; 8]).unwrap();
}

#[test]
fn statistics_are_read_and_asked_for_again() {
    let (mut harness, handle) = started();
    let entries = [statistic(4, 1000), statistic(5, 2000), statistic(999, 1)].concat();
    harness.queues[2].add(&[Buffer::Readable(&entries)]);
    harness.kick(STATISTICS);
    let (count, statistics) = handle.statistics();
    assert_eq!(
        (count, statistics.free, statistics.total),
        (1, Some(1000), Some(2000))
    );
    assert_eq!(statistics.available, None);
    assert_eq!(harness.queues[2].used_index(), 0);

    assert!(handle.request_statistics());
    harness.settle();
    assert!(harness.queues[2].take_used().is_some());
    harness.queues[2].add(&[Buffer::Readable(&statistic(4, 500))]);
    harness.kick(STATISTICS);
    assert_eq!(handle.statistics().0, 2);
    assert_eq!(handle.statistics().1.free, Some(500));
}

#[test]
fn statistics_of_endless_length_are_cut() {
    let (mut harness, handle) = started();
    let entries = statistic(4, 1).repeat(10_000);
    harness.queues[2].add(&[Buffer::Readable(&entries), Buffer::Readable(b"half")]);
    harness.kick(STATISTICS);
    assert_eq!(handle.statistics().0, 1);
}

#[test]
fn state_survives() {
    let (harness, handle) = started();
    handle.set_target(8 << 20);
    harness.mount.write_config(4, &5u32.to_le_bytes());
    harness.mount.pause().unwrap();
    let state = harness.mount.save().unwrap();
    let (balloon, handle) = Balloon::new().unwrap();
    Harness::new(balloon).mount.restore(&state).unwrap();
    assert_eq!((handle.target(), handle.actual()), (8 << 20, 5 * 4096));
}
