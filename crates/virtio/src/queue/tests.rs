use vm_memory::GuestAddressSpace;

use super::*;
use crate::GuestMemory;
use crate::testing::{Buffer, CountingInterrupt, DriverQueue, desc, guest_memory, guest_memory_at};

const SIZE: u16 = 16;
const ALL: u64 = F_VERSION_1 | F_INDIRECT_DESC | F_EVENT_IDX;

fn set_up(features: u64) -> (GuestMemory, DriverQueue, Virtqueue) {
    let memory = guest_memory(8);
    let driver = DriverQueue::new(&memory, 0, SIZE);
    let queue = Virtqueue::new(0, driver.config(), SIZE, features, &memory.memory()).unwrap();
    (memory, driver, queue)
}

fn rejected(change: impl FnOnce(&mut QueueConfig)) -> QueueError {
    let memory = guest_memory(8);
    let mut config = DriverQueue::new(&memory, 0, SIZE).config();
    change(&mut config);
    Virtqueue::new(0, config, SIZE, ALL, &memory.memory()).unwrap_err()
}

#[test]
fn queue_size_zero_is_rejected() {
    assert_eq!(
        rejected(|config| config.size = 0),
        QueueError::Size { size: 0, max: SIZE }
    );
}

#[test]
fn queue_size_not_a_power_of_two_is_rejected() {
    assert_eq!(
        rejected(|config| config.size = 12),
        QueueError::Size {
            size: 12,
            max: SIZE
        }
    );
}

#[test]
fn queue_size_above_maximum_is_rejected() {
    assert_eq!(
        rejected(|config| config.size = 32),
        QueueError::Size {
            size: 32,
            max: SIZE
        }
    );
}

#[test]
fn queue_ring_misaligned_is_rejected() {
    let error = rejected(|config| config.used += 2);
    assert!(matches!(
        error,
        QueueError::Alignment {
            ring: "used ring",
            alignment: 4,
            ..
        }
    ));
}

#[test]
fn queue_ring_beyond_memory_is_rejected() {
    let error = rejected(|config| config.available = (8 << 20) - 32);
    assert!(matches!(
        error,
        QueueError::RingOutside {
            ring: "available ring",
            ..
        }
    ));
}

#[test]
fn queue_ring_at_end_of_address_space_is_rejected() {
    let error = rejected(|config| config.descriptors = u64::MAX - 15);
    assert!(matches!(
        error,
        QueueError::RingOutside {
            ring: "descriptor table",
            ..
        }
    ));
}

#[test]
fn queue_empty_pops_nothing() {
    let (memory, _driver, mut queue) = set_up(ALL);
    assert_eq!(queue.pop(&memory.memory()), Ok(None));
}

#[test]
fn queue_not_ready_pops_nothing_and_takes_nothing_back() {
    let memory = guest_memory(8);
    let ram = memory.memory();
    let mut queue = Virtqueue::new(3, QueueConfig::default(), SIZE, ALL, &ram).unwrap();
    assert_eq!(queue.pop(&ram), Ok(None));
    assert_eq!(queue.enable_kicks(&ram), Ok(false));
    assert_eq!(queue.needs_notification(&ram), Ok(false));
    assert_eq!(queue.push(&ram, 0, 0), Err(QueueError::NotReady(3)));
}

#[test]
fn chain_of_both_directions_is_read_in_order() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let offered = driver.add(&[
        Buffer::Readable(b"header"),
        Buffer::Readable(b"data"),
        Buffer::Writable(100),
        Buffer::Writable(1),
    ]);
    let chain = queue.pop(&memory.memory()).unwrap().unwrap();
    assert_eq!(chain.head(), offered.head);
    assert_eq!((chain.readable_len(), chain.writable_len()), (10, 101));
    let at: Vec<_> = chain
        .readable()
        .iter()
        .chain(chain.writable())
        .map(|s| s.addr.0)
        .collect();
    assert_eq!(at, offered.buffers.iter().map(|b| b.0).collect::<Vec<_>>());
}

#[test]
fn chain_indirect_is_read_like_a_direct_one() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.add_indirect(&[Buffer::Readable(b"abc"), Buffer::Writable(7)]);
    let chain = queue.pop(&memory.memory()).unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (3, 7));
}

#[test]
fn chain_indirect_longer_than_queue_is_read() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let buffers = vec![Buffer::Writable(1); 100];
    driver.add_indirect(&buffers);
    let chain = queue.pop(&memory.memory()).unwrap().unwrap();
    assert_eq!(chain.writable().len(), 100);
}

#[test]
fn chain_indirect_not_negotiated_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(F_VERSION_1);
    driver.add_indirect(&[Buffer::Writable(7)]);
    assert!(matches!(
        queue.pop(&memory.memory()),
        Err(QueueError::Indirect(_))
    ));
}

#[test]
fn chain_indirect_nested_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let table = driver.allocate(16);
    driver.write_descriptor(table, table, 16, desc::INDIRECT, 0);
    driver.set_descriptor(0, table, 16, desc::INDIRECT, 0);
    driver.offer(0);
    assert!(matches!(
        queue.pop(&memory.memory()),
        Err(QueueError::Indirect(_))
    ));
}

#[test]
fn chain_indirect_table_of_bad_length_is_rejected() {
    for len in [0, 15, 17] {
        let (memory, mut driver, mut queue) = set_up(ALL);
        driver.set_descriptor(0, 0x1000, len, desc::INDIRECT, 0);
        driver.offer(0);
        assert!(matches!(
            queue.pop(&memory.memory()),
            Err(QueueError::Indirect(_))
        ));
    }
}

#[test]
fn chain_indirect_table_huge_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.set_descriptor(0, 0, 0xffff_fff0, desc::INDIRECT, 0);
    driver.offer(0);
    let error = queue.pop(&memory.memory()).unwrap_err();
    assert_eq!(
        error,
        QueueError::ChainTooLong {
            limit: MAX_CHAIN_DESCRIPTORS
        }
    );
}

#[test]
fn chain_indirect_looping_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let table = driver.allocate(32);
    driver.write_descriptor(table, 0x1000, 1, desc::NEXT, 1);
    driver.write_descriptor(table + 16, 0x1000, 1, desc::NEXT, 0);
    driver.set_descriptor(0, table, 32, desc::INDIRECT, 0);
    driver.offer(0);
    let error = queue.pop(&memory.memory()).unwrap_err();
    assert_eq!(error, QueueError::ChainTooLong { limit: 2 });
}

#[test]
fn chain_indirect_table_beyond_memory_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.set_descriptor(0, u64::MAX - 15, 32, desc::INDIRECT, 0);
    driver.offer(0);
    assert!(matches!(
        queue.pop(&memory.memory()),
        Err(QueueError::MemoryGone(_))
    ));
}

#[test]
fn chain_looping_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.set_descriptor(0, 0x1000, 1, desc::NEXT, 1);
    driver.set_descriptor(1, 0x1000, 1, desc::NEXT, 0);
    driver.offer(0);
    let error = queue.pop(&memory.memory()).unwrap_err();
    assert_eq!(
        error,
        QueueError::ChainTooLong {
            limit: u32::from(SIZE)
        }
    );
}

#[test]
fn chain_head_beyond_table_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.offer(SIZE);
    let error = queue.pop(&memory.memory()).unwrap_err();
    assert_eq!(
        error,
        QueueError::DescriptorIndex {
            index: SIZE,
            size: u32::from(SIZE)
        }
    );
}

#[test]
fn chain_next_beyond_table_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.set_descriptor(0, 0x1000, 1, desc::NEXT, 0xffff);
    driver.offer(0);
    assert!(matches!(
        queue.pop(&memory.memory()),
        Err(QueueError::DescriptorIndex { .. })
    ));
}

#[test]
fn chain_readable_after_writable_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.add(&[Buffer::Writable(1), Buffer::Readable(b"x")]);
    assert_eq!(queue.pop(&memory.memory()), Err(QueueError::Direction));
}

#[test]
fn chain_buffer_beyond_memory_is_rejected() {
    for (address, len) in [
        (8 << 20, 1),
        ((8 << 20) - 1, 2),
        (u64::MAX, 1),
        (0, u32::MAX),
    ] {
        let (memory, mut driver, mut queue) = set_up(ALL);
        driver.set_descriptor(0, address, len, 0, 0);
        driver.offer(0);
        let error = queue.pop(&memory.memory()).unwrap_err();
        assert_eq!(error, QueueError::BufferOutside { address, len });
    }
}

#[test]
fn chain_of_four_gib_is_rejected() {
    let memory = guest_memory_at(&[(0, 8 << 20), (1 << 32, 3 << 30)]);
    let mut driver = DriverQueue::new(&memory, 0, SIZE);
    let mut queue = Virtqueue::new(0, driver.config(), SIZE, ALL, &memory.memory()).unwrap();
    driver.set_descriptor(0, 1 << 32, 2 << 30, desc::NEXT, 1);
    driver.set_descriptor(1, 1 << 32, 2 << 30, desc::WRITE, 0);
    driver.offer(0);
    assert_eq!(queue.pop(&memory.memory()), Err(QueueError::ChainTooLarge));
}

#[test]
fn chain_empty_descriptors_are_dropped() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.add(&[Buffer::Readable(b""), Buffer::Writable(0)]);
    let chain = queue.pop(&memory.memory()).unwrap().unwrap();
    assert!(chain.readable().is_empty() && chain.writable().is_empty());
}

#[test]
fn available_index_jumping_is_rejected() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    driver.set_available_index(SIZE + 1);
    let error = queue.pop(&memory.memory()).unwrap_err();
    assert_eq!(
        error,
        QueueError::AvailableIndex {
            by: SIZE + 1,
            size: SIZE
        }
    );
}

#[test]
fn ring_indices_wrap() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let ram = memory.memory();
    for round in 0..70_000u32 {
        driver.add(&[Buffer::Writable(4)]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        queue.push(&ram, chain.head(), round % 5).unwrap();
        assert_eq!(driver.take_used().unwrap().1, round % 5);
    }
}

#[test]
fn undo_pop_gives_the_same_chain_again() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let ram = memory.memory();
    driver.add(&[Buffer::Writable(4)]);
    let first = queue.pop(&ram).unwrap();
    queue.undo_pop();
    assert_eq!(queue.pop(&ram).unwrap(), first);
    assert_eq!(queue.pop(&ram), Ok(None));
}

#[test]
fn position_moved_to_another_queue_goes_on() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let ram = memory.memory();
    driver.add(&[Buffer::Writable(4)]);
    let second = driver.add(&[Buffer::Writable(4)]);
    let chain = queue.pop(&ram).unwrap().unwrap();
    queue.push(&ram, chain.head(), 0).unwrap();
    let state = queue.state();

    let mut other = Virtqueue::new(0, state.config, SIZE, ALL, &ram).unwrap();
    other.set_position(state.next_available, state.next_used);

    let chain = other.pop(&ram).unwrap().unwrap();
    assert_eq!(chain.head(), second.head);
    other.push(&ram, chain.head(), 0).unwrap();
    assert_eq!(driver.used_index(), 2);
}

#[test]
fn notification_follows_flag_without_event_idx() {
    let (memory, mut driver, mut queue) = set_up(F_VERSION_1);
    let ram = memory.memory();
    for (flags, wanted) in [(0, true), (1, false)] {
        driver.set_available_flags(flags);
        driver.add(&[Buffer::Writable(4)]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        queue.push(&ram, chain.head(), 0).unwrap();
        assert_eq!(queue.needs_notification(&ram), Ok(wanted));
    }
}

#[test]
fn notification_follows_used_event() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let ram = memory.memory();
    let mut signals = Vec::new();
    driver.set_used_event(2);
    for _ in 0..6 {
        driver.add(&[Buffer::Writable(4)]);
        let chain = queue.pop(&ram).unwrap().unwrap();
        queue.push(&ram, chain.head(), 0).unwrap();
        signals.push(queue.needs_notification(&ram).unwrap());
    }
    // The first one ever is always told, then the one with which the index passes 2.
    assert_eq!(signals, [true, false, true, false, false, false]);
}

#[test]
fn notification_without_anything_pushed_is_not_needed() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let ram = memory.memory();
    let interrupt = CountingInterrupt::new();
    driver.add(&[Buffer::Writable(4)]);
    let chain = queue.pop(&ram).unwrap().unwrap();
    queue.push(&ram, chain.head(), 0).unwrap();
    queue.notify(&ram, &*interrupt).unwrap();
    queue.notify(&ram, &*interrupt).unwrap();
    assert_eq!(interrupt.queue_signals(), 1);
}

#[test]
fn kicks_with_event_idx_are_asked_for_the_next_chain() {
    let (memory, mut driver, mut queue) = set_up(ALL);
    let ram = memory.memory();
    driver.add(&[Buffer::Writable(4)]);
    queue.pop(&ram).unwrap().unwrap();
    assert_eq!(queue.enable_kicks(&ram), Ok(false));
    assert_eq!(driver.available_event(), 1);
    driver.add(&[Buffer::Writable(4)]);
    assert_eq!(queue.enable_kicks(&ram), Ok(true));
}

#[test]
fn kicks_without_event_idx_follow_the_flag() {
    let (memory, driver, mut queue) = set_up(F_VERSION_1);
    let ram = memory.memory();
    queue.disable_kicks(&ram).unwrap();
    assert_eq!(driver.used_flags(), 1);
    queue.enable_kicks(&ram).unwrap();
    assert_eq!(driver.used_flags(), 0);
}

mod cursor {
    use super::*;

    fn segments() -> [Segment; 2] {
        [
            Segment {
                addr: GuestAddress(0x1000),
                len: 3,
            },
            Segment {
                addr: GuestAddress(0x2000),
                len: 5,
            },
        ]
    }

    #[test]
    fn cursor_crosses_segments_in_both_directions() {
        let memory = guest_memory(1);
        let ram = memory.memory();
        let segments = segments();
        Cursor::new(&segments).write_all(&ram, b"abcdefgh").unwrap();
        let mut reader = Cursor::new(&segments);
        let mut buf = [0; 2];
        reader.read_exact(&ram, &mut buf).unwrap();
        assert_eq!(&buf, b"ab");
        let mut buf = [0; 6];
        reader.read_exact(&ram, &mut buf).unwrap();
        assert_eq!(&buf, b"cdefgh");
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn cursor_short_buffer_is_told_and_left_alone() {
        let memory = guest_memory(1);
        let ram = memory.memory();
        let segments = segments();
        let mut reader = Cursor::new(&segments);
        assert_eq!(
            reader.read_exact(&ram, &mut [0; 11]),
            Err(ShortBuffer::Short(3))
        );
        assert_eq!(reader.remaining(), 8);
    }

    #[test]
    fn cursor_segments_are_cut_at_position_and_limit() {
        let segments = segments();
        let mut cursor = Cursor::new(&segments);
        cursor.skip(1);
        let cut: Vec<_> = cursor.segments(4).collect();
        let expected = [
            Segment {
                addr: GuestAddress(0x1001),
                len: 2,
            },
            Segment {
                addr: GuestAddress(0x2000),
                len: 2,
            },
        ];
        assert_eq!(cut, expected);
        cursor.skip(100);
        assert_eq!(cursor.segments(4).count(), 0);
    }
}
