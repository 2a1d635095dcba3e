use super::*;
use crate::rate::{Rate, RateLimits};
use crate::testing::desc;

const SIZE: usize = 1 << 20;
const SECTORS: u64 = (SIZE / 512) as u64;

#[test]
fn read_returns_the_files_bytes() {
    let content = pattern(SIZE, 1);
    let mut disk = Disk::raw(&content);
    disk.offer_in(T_IN, 3, 4096);
    let (status, written, data) = disk.answer();
    assert_eq!((status, written), (OK, 4097));
    assert_eq!(data, content[3 * 512..][..4096]);
}

#[test]
fn write_changes_just_its_sectors() {
    let mut content = pattern(SIZE, 1);
    let mut disk = Disk::raw(&content);
    let data = pattern(8192, 9);
    assert_eq!(disk.write(5, &data), OK);
    content[5 * 512..][..8192].copy_from_slice(&data);
    assert_eq!(disk.read(0, 65536), (OK, content[..65536].to_vec()));
}

#[test]
fn write_up_to_the_last_sector_is_served_and_beyond_refused() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    assert_eq!(disk.write(SECTORS - 1, &[7; 512]), OK);
    assert_eq!(disk.write(SECTORS - 1, &[7; 1024]), IOERR);
    assert_eq!(disk.write(SECTORS, &[7; 512]), IOERR);
    assert_eq!(disk.write(u64::MAX, &[7; 512]), IOERR);
    assert_eq!(disk.write(u64::MAX / 512, &[7; 1024]), IOERR);
    assert_eq!(disk.read(SECTORS, 512).0, IOERR);
    assert_eq!(disk.handle.metrics().failures(), 5);
}

#[test]
fn read_of_no_bytes_is_served() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    assert_eq!(disk.read(0, 0).0, OK);
    assert_eq!(disk.write(0, b""), OK);
}

#[test]
fn read_of_part_of_a_sector_is_refused() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    assert_eq!(disk.read(0, 511).0, IOERR);
    assert_eq!(disk.write(0, &[1; 513]), IOERR);
}

#[test]
fn request_of_unknown_kind_is_unsupported() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    disk.offer_in(999, 0, 512);
    assert_eq!(disk.answer().0, UNSUPP);
}

#[test]
fn serial_is_told_and_padded() {
    let backend = RawDisk::new(file_of(&[0; 512]), false).unwrap();
    let options = BlockOptions {
        serial: "disk-one".into(),
        ..BlockOptions::default()
    };
    let mut disk = Disk::new(Arc::new(backend), options);
    disk.offer_in(T_GET_ID, 0, 20);
    let (status, written, data) = disk.answer();
    assert_eq!((status, written), (OK, 21));
    assert_eq!(data, b"disk-one\0\0\0\0\0\0\0\0\0\0\0\0");
    disk.offer_in(T_GET_ID, 0, 19);
    assert_eq!(disk.answer().0, IOERR);
}

#[test]
fn options_out_of_range_are_rejected() {
    let new = |options| {
        let backend = RawDisk::new(file_of(&[0; 512]), false).unwrap();
        Block::new(Arc::new(backend), options).map(|_| ())
    };
    let serial = "x".repeat(21);
    let long = BlockOptions {
        serial,
        ..BlockOptions::default()
    };
    assert!(matches!(new(long), Err(BlockError::Serial(_))));
    for queues in [0, 17] {
        let options = BlockOptions {
            queues,
            ..BlockOptions::default()
        };
        assert!(matches!(new(options), Err(BlockError::Queues(_))));
    }
}

#[test]
fn read_only_disk_refuses_whatever_changes_it() {
    let backend = RawDisk::new(file_of(&pattern(SIZE, 1)), true).unwrap();
    let mut disk = Disk::new(Arc::new(backend), BlockOptions::default());
    assert_ne!(disk.harness.mount.features() & 1 << 5, 0);
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    assert_eq!(disk.ranges(T_DISCARD, &[range(0, 8, 0)]), IOERR);
    assert_eq!(disk.ranges(T_WRITE_ZEROES, &[range(0, 8, 0)]), IOERR);
    assert_eq!(disk.read(0, 512).1, pattern(SIZE, 1)[..512]);
    assert_eq!(disk.flush(), OK);
}

#[test]
fn write_zeroes_and_discard_reach_the_file() {
    let content = pattern(SIZE, 1);
    for flags in [0, 1] {
        let mut disk = Disk::raw(&content);
        let ranges = [range(8, 8, flags), range(32, 1, flags)];
        assert_eq!(disk.ranges(T_WRITE_ZEROES, &ranges), OK);
        let (_, data) = disk.read(0, 65536);
        assert_eq!(data[8 * 512..16 * 512], [0; 4096]);
        assert_eq!(data[32 * 512..33 * 512], [0; 512]);
        assert_eq!(data[16 * 512..32 * 512], content[16 * 512..32 * 512]);
        assert_eq!(disk.ranges(T_DISCARD, &[range(64, 64, 0)]), OK);
        assert_eq!(disk.read(128, 512).1, content[128 * 512..129 * 512]);
        assert_eq!(disk.handle.metrics().discards(), 2);
    }
}

#[test]
fn ranges_that_are_wrong_are_refused() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    assert_eq!(disk.ranges(T_DISCARD, &[range(0, 8, 1)]), UNSUPP);
    assert_eq!(disk.ranges(T_WRITE_ZEROES, &[range(0, 8, 2)]), UNSUPP);
    assert_eq!(disk.ranges(T_DISCARD, &[range(SECTORS, 1, 0)]), IOERR);
    assert_eq!(
        disk.ranges(T_DISCARD, &[range(u64::MAX, u32::MAX, 0)]),
        IOERR
    );
    assert_eq!(disk.ranges(T_WRITE_ZEROES, &[range(u64::MAX, 1, 0)]), IOERR);
    assert_eq!(disk.ranges(T_DISCARD, &[]), IOERR);
    assert_eq!(disk.ranges(T_DISCARD, &[vec![0; 15]]), IOERR);
    assert_eq!(disk.ranges(T_DISCARD, &vec![range(0, 1, 0); 33]), IOERR);
    assert_eq!(disk.read(0, 512).1, pattern(SIZE, 1)[..512]);
}

#[test]
fn configuration_tells_size_and_limits() {
    let disk = Disk::raw(&pattern(SIZE + 100, 1));
    assert_eq!(disk.config(0, 8), SECTORS + 1);
    assert_eq!(disk.config(12, 4), 254);
    assert_eq!(disk.config(20, 4), 512);
    assert_eq!(disk.config(34, 2), 1);
    assert_eq!(disk.config(36, 4), 1 << 22);
    assert_eq!(disk.config(48, 4), 1 << 21);
    assert_eq!(disk.config(56, 1), 1);
    assert_eq!(disk.config(60, 8), 0);
}

#[test]
fn file_that_ends_inside_a_sector_reads_zeroes_after_it() {
    let content = pattern(1000, 1);
    let mut disk = Disk::raw(&content);
    let (status, data) = disk.read(0, 1024);
    assert_eq!(status, OK);
    assert_eq!(data[..1000], content);
    assert_eq!(data[1000..], [0; 24]);
}

#[test]
fn disk_grown_tells_the_guest_and_serves_the_new_part() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    disk.handle.grow(2 * SIZE as u64).unwrap();
    assert_eq!(disk.harness.interrupt.config_signals(), 1);
    assert_eq!(disk.config(0, 8), 2 * SECTORS);
    assert_eq!(disk.write(2 * SECTORS - 1, &[3; 512]), OK);
}

#[test]
fn disk_grown_to_the_size_that_it_has_tells_nobody() {
    let disk = Disk::raw(&pattern(SIZE, 1));
    disk.handle.grow(SIZE as u64).unwrap();
    assert_eq!(disk.harness.interrupt.config_signals(), 0);
}

#[test]
fn disk_grown_while_its_driver_starts_tells_it_afterwards() {
    let backend = RawDisk::new(file_of(&pattern(SIZE, 1)), false).unwrap();
    let (block, handle) = Block::new(Arc::new(backend), BlockOptions::default()).unwrap();
    let harness = Harness::new(block);
    handle.grow(2 * SIZE as u64).unwrap();
    assert_eq!(harness.interrupt.config_signals(), 0);
    harness.activate().unwrap();
    assert_eq!(harness.interrupt.config_signals(), 1);
}

#[test]
fn disk_that_cannot_grow_says_why_and_stays_as_it_is() {
    let file = file_of(&pattern(SIZE, 1));
    let size = SIZE as u64;
    let disk = |read_only| {
        let backend = RawDisk::new(file.try_clone().unwrap(), read_only).unwrap();
        Disk::new(Arc::new(backend), BlockOptions::default())
    };
    let (writable, read_only) = (disk(false), disk(true));
    let refused = writable.handle.grow(size - 512);
    assert!(matches!(refused, Err(GrowError::Smaller(has)) if has == size));
    let refused = writable.handle.grow(size + 1);
    assert!(matches!(refused, Err(GrowError::NotSectors(_))));
    let refused = read_only.handle.grow(2 * size);
    assert!(matches!(refused, Err(GrowError::ReadOnly)));
    for disk in [&writable, &read_only] {
        assert_eq!(disk.harness.interrupt.config_signals(), 0);
        assert_eq!(disk.config(0, 8), SECTORS);
    }
    assert_eq!(file.metadata().unwrap().len(), size);
}

#[test]
fn disk_made_larger_behind_our_back_is_not_cut_off_by_growing() {
    let file = file_of(&pattern(SIZE, 1));
    let backend = RawDisk::new(file.try_clone().unwrap(), false).unwrap();
    let disk = Disk::new(Arc::new(backend), BlockOptions::default());
    file.set_len(4 * SIZE as u64).unwrap();
    let refused = disk.handle.grow(2 * SIZE as u64);
    assert!(matches!(refused, Err(GrowError::Smaller(has)) if has == 4 * SIZE as u64));
    assert_eq!(file.metadata().unwrap().len(), 4 * SIZE as u64);
}

#[test]
fn disk_changed_behind_our_back_is_noticed_when_asked() {
    let file = file_of(&pattern(SIZE, 1));
    let backend = RawDisk::new(file.try_clone().unwrap(), false).unwrap();
    let disk = Disk::new(Arc::new(backend), BlockOptions::default());
    assert_eq!(disk.handle.refresh_size().unwrap(), SIZE as u64);
    assert_eq!(disk.harness.interrupt.config_signals(), 0);
    file.set_len(4 * SIZE as u64).unwrap();
    disk.handle.refresh_size().unwrap();
    assert_eq!(disk.harness.interrupt.config_signals(), 1);
    assert_eq!(disk.config(0, 8), 4 * SECTORS);
}

#[test]
fn chain_without_status_needs_reset() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    disk.harness.queues[0].add(&[Buffer::Readable(&header(T_IN, 0))]);
    disk.harness.kick(0);
    assert_eq!(disk.harness.interrupt.reset_requests(), 1);
}

#[test]
fn chain_without_whole_header_needs_reset() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    disk.harness.queues[0].add(&[Buffer::Readable(&[0; 15]), Buffer::Writable(1)]);
    disk.harness.kick(0);
    assert_eq!(disk.harness.interrupt.reset_requests(), 1);
}

#[test]
fn chain_with_header_in_pieces_is_served() {
    let content = pattern(SIZE, 1);
    let mut disk = Disk::raw(&content);
    let header = header(T_IN, 1);
    let (first, second) = header.split_at(5);
    disk.harness.queues[0].add_indirect(&[
        Buffer::Readable(first),
        Buffer::Readable(second),
        Buffer::Writable(513),
    ]);
    disk.harness.mount.kick(0);
    while disk.harness.queues[0].used_index() == 0 {
        disk.harness.wait();
    }
    let (offered, written) = disk.harness.queues[0].take_used().unwrap();
    assert_eq!(written, 513);
    let data = disk.harness.queues[0].read(offered.buffers[2].0, 513);
    assert_eq!(data[..512], content[512..1024]);
    assert_eq!(data[512], OK);
}

#[test]
fn broken_ring_after_good_requests_still_answers_nothing_wrong_and_restarts() {
    let mut disk = Disk::raw(&pattern(SIZE, 1));
    disk.offer_in(T_IN, 0, 4096);
    disk.harness.queues[0].set_descriptor(200, u64::MAX, 4, desc::WRITE, 0);
    disk.harness.queues[0].offer(200);
    disk.harness.kick(0);
    assert_eq!(disk.harness.interrupt.reset_requests(), 1);
}

#[test]
fn rate_limit_delays_requests_until_its_timer() {
    let backend = RawDisk::new(file_of(&pattern(SIZE, 1)), false).unwrap();
    let operations = Some(Rate {
        per_second: 200,
        burst: 2,
    });
    let limits = RateLimits {
        bytes: None,
        operations,
    };
    let options = BlockOptions {
        limits,
        ..BlockOptions::default()
    };
    let mut disk = Disk::new(Arc::new(backend), options);
    let begin = std::time::Instant::now();
    for sector in 0..12 {
        disk.offer_in(T_IN, sector, 512);
    }
    for _ in 0..12 {
        assert_eq!(disk.answer().0, OK);
    }
    // Two at once, ten at 5 ms each.
    assert!(begin.elapsed().as_millis() >= 45, "{:?}", begin.elapsed());
    assert!(disk.handle.metrics().throttled() > 0);
}

#[test]
fn raw_disk_found_out_by_content_cannot_become_an_image() {
    let backend = RawDisk::new(file_of(&pattern(SIZE, 1)), false).unwrap();
    let options = BlockOptions {
        keep_raw: true,
        ..BlockOptions::default()
    };
    let mut disk = Disk::new(Arc::new(backend), options);
    let mut image = pattern(4096, 3);
    image[..4].copy_from_slice(b"QFI\xfb");
    assert_eq!(disk.write(0, &image), IOERR);
    assert_eq!(disk.read(0, 4096).1, pattern(SIZE, 1)[..4096]);
    let harmless = pattern(4096, 4);
    assert_eq!(disk.write(0, &harmless), OK);
    assert_eq!(disk.read(0, 4096).1, harmless);
    assert_eq!(disk.write(0, &harmless[..512]), OK);
}

#[test]
fn state_fits_the_same_disk_only() {
    let disk = Disk::raw(&pattern(SIZE, 1));
    disk.harness.mount.pause().unwrap();
    let state = disk.harness.mount.save().unwrap();
    let restore = |len, read_only| {
        let backend = RawDisk::new(file_of(&vec![0; len]), read_only).unwrap();
        let (block, _) = Block::new(Arc::new(backend), BlockOptions::default()).unwrap();
        Harness::new(block).mount.restore(&state)
    };
    assert!(restore(SIZE, false).is_ok());
    assert!(restore(SIZE, true).is_err());
    assert!(restore(SIZE + 512, false).is_err());
}
