//! The same requests on every engine.

use super::*;

const SIZE: usize = 4 << 20;

fn on_each_engine(test: impl Fn(BlockOptions)) {
    for engine in [EngineKind::Threads, EngineKind::IoUring] {
        test(BlockOptions {
            engine,
            ..BlockOptions::default()
        });
    }
}

fn disk(content: &[u8], options: BlockOptions) -> Disk {
    Disk::new(
        Arc::new(RawDisk::new(file_of(content), false).unwrap()),
        options,
    )
}

#[test]
fn many_requests_at_once_are_all_answered_once() {
    on_each_engine(|options| {
        let content = pattern(SIZE, 1);
        let mut disk = disk(&content, options);
        for round in 0..20u64 {
            for at in 0..64 {
                disk.offer_in(T_IN, (round * 64 + at) % 8000, 4096);
            }
            for _ in 0..64 {
                assert_eq!(disk.answer().0, OK);
            }
        }
        assert_eq!(disk.harness.queues[0].used_index(), 20 * 64);
        assert_eq!(disk.handle.metrics().reads(), 20 * 64);
    });
}

#[test]
fn written_data_is_read_back() {
    on_each_engine(|options| {
        let mut disk = disk(&pattern(SIZE, 1), options);
        for at in 0..50 {
            assert_eq!(disk.write(at * 100, &pattern(16384, at as u32)), OK);
        }
        assert_eq!(disk.flush(), OK);
        for at in 0..50 {
            assert_eq!(disk.read(at * 100, 16384), (OK, pattern(16384, at as u32)));
        }
    });
}

#[test]
fn request_in_a_thousand_pieces_is_served() {
    on_each_engine(|options| {
        let content = pattern(SIZE, 1);
        let mut disk = disk(&content, options);
        let header = header(T_IN, 0);
        let mut buffers = vec![Buffer::Readable(&header)];
        buffers.extend([Buffer::Writable(512); 1020]);
        buffers.push(Buffer::Writable(1));
        disk.harness.queues[0].add_indirect(&buffers);
        disk.harness.mount.kick(0);
        while disk.harness.queues[0].used_index() == 0 {
            disk.harness.wait();
        }
        let (offered, written) = disk.harness.queues[0].take_used().unwrap();
        assert_eq!(written, 1020 * 512 + 1);
        for (at, &(address, _)) in offered.buffers[1..1021].iter().enumerate() {
            let data = disk.harness.queues[0].read(address, 512);
            assert_eq!(data, content[at * 512..][..512]);
        }
    });
}

#[test]
fn reset_waits_for_requests_in_flight() {
    on_each_engine(|options| {
        let mut disk = disk(&pattern(SIZE, 1), options);
        for at in 0..60 {
            disk.offer_out(T_OUT, at * 8, &pattern(4096, 1));
        }
        disk.harness.mount.kick(0);
        disk.harness.reactor.turn(None).unwrap();
        disk.harness.mount.reset();
        drop(disk);
    });
}

#[test]
fn pause_answers_all_that_was_begun() {
    on_each_engine(|options| {
        let mut disk = disk(&pattern(SIZE, 1), options);
        for at in 0..60 {
            disk.offer_out(T_OUT, at * 8, &pattern(4096, 1));
        }
        disk.harness.mount.kick(0);
        disk.harness.reactor.turn(None).unwrap();
        disk.harness.mount.pause().unwrap();
        let state = disk.harness.mount.queue_states()[0];
        assert_eq!(state.next_available, state.next_used);
        assert_eq!(disk.harness.queues[0].used_index(), state.next_used);
        disk.harness.mount.resume();
        for _ in 0..60 {
            assert_eq!(disk.answer().0, OK);
        }
    });
}

#[test]
fn without_the_flush_feature_a_write_is_durable_when_answered() {
    on_each_engine(|options| {
        let backend = RawDisk::new(file_of(&pattern(SIZE, 1)), false).unwrap();
        let (block, handle) = Block::new(Arc::new(backend), options).unwrap();
        let harness = Harness::new(block).with_features(0);
        harness.activate().unwrap();
        let mut disk = Disk { harness, handle };
        assert_eq!(disk.write(0, &pattern(4096, 2)), OK);
        assert_eq!(disk.write(0, b""), OK);
        assert_eq!(disk.read(0, 4096).1, pattern(4096, 2));
    });
}

#[test]
fn several_queues_are_served() {
    on_each_engine(|options| {
        let options = BlockOptions {
            queues: 4,
            ..options
        };
        let mut disk = disk(&pattern(SIZE, 1), options);
        assert_eq!(disk.config(34, 2), 4);
        for index in 0..4u16 {
            let header = header(T_IN, u64::from(index));
            let buffers = [Buffer::Readable(&header), Buffer::Writable(513)];
            disk.harness.queues[usize::from(index)].add(&buffers);
            disk.harness.mount.kick(index);
            while disk.harness.queues[usize::from(index)]
                .take_used()
                .is_none()
            {
                disk.harness.wait();
            }
        }
    });
}
