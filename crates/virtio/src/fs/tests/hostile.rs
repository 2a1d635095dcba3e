//! Messages that are no requests.

use super::*;
use crate::testing::desc;

fn failing(guest: &mut Guest, buffers: &[Buffer<'_>]) -> Option<i32> {
    guest.harness.queues[1].add(buffers);
    guest.harness.kick(REQUESTS);
    let (offered, written) = guest.harness.queues[1].take_used()?;
    let last = offered.buffers.last()?.0;
    (written >= 16).then(|| {
        let error = guest.harness.queues[1].read(last + 4, 4);
        i32::from_le_bytes(error.try_into().unwrap())
    })
}

#[test]
fn request_shorter_than_its_header_needs_reset() {
    let mut guest = Guest::new();
    guest.harness.queues[1].add(&[Buffer::Readable(&[0; 39]), Buffer::Writable(16)]);
    guest.harness.kick(REQUESTS);
    assert_eq!(guest.harness.interrupt.reset_requests(), 1);
}

#[test]
fn request_of_another_length_than_it_says_is_refused() {
    let mut guest = Guest::new();
    for len in [0u32, 39, 41, u32::MAX] {
        let mut header = guest.header(opcode::GETATTR, ROOT, 0);
        header[..4].copy_from_slice(&len.to_le_bytes());
        let error = failing(
            &mut guest,
            &[Buffer::Readable(&header), Buffer::Writable(200)],
        );
        assert_eq!(error, Some(-libc::EINVAL), "{len}");
    }
}

#[test]
fn request_cut_off_in_its_fields_is_refused_for_every_kind() {
    let mut guest = Guest::new();
    // Those that get no reply have a test of their own.
    let silent = [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT];
    let without_fields = [
        opcode::DESTROY,
        opcode::STATFS,
        opcode::OPENDIR,
        opcode::SYNCFS,
        opcode::INIT,
    ];
    for kind in (0..60).filter(|kind| !silent.contains(kind)) {
        for len in [0, 1, 4, 7, 8, 15, 20, 39] {
            if let Ok(reply) = guest.call(kind, ROOT, &vec![0xff; len]) {
                assert!(
                    without_fields.contains(&kind) || reply.is_empty(),
                    "{kind} {len}"
                );
            }
        }
    }
    guest.assert_untouched();
}

#[test]
fn request_of_unknown_kind_is_not_implemented() {
    let mut guest = Guest::new();
    for kind in [0, 7, 19, 34, 48, 49, 60, 4096, u32::MAX] {
        assert_eq!(
            guest.call(kind, ROOT, &[0; 64]).err(),
            Some(Errno::NOSYS),
            "{kind}"
        );
    }
}

#[test]
fn request_too_long_is_refused() {
    let mut guest = Guest::new();
    let body = vec![b'x'; (128 << 10) + 1];
    assert_eq!(
        guest.call(opcode::LOOKUP, ROOT, &body).err(),
        Some(Errno::TOOBIG)
    );
}

#[test]
fn reply_without_room_is_dropped_or_replaced() {
    let mut guest = Guest::new();
    let header = guest.header(opcode::STATFS, ROOT, 0);
    assert_eq!(
        failing(
            &mut guest,
            &[Buffer::Readable(&header), Buffer::Writable(15)]
        ),
        None
    );
    let error = failing(
        &mut guest,
        &[Buffer::Readable(&header), Buffer::Writable(16)],
    );
    assert_eq!(error, Some(-libc::ERANGE));
    let error = failing(
        &mut guest,
        &[Buffer::Readable(&header), Buffer::Writable(95)],
    );
    assert_eq!(error, Some(-libc::ERANGE));
    assert_eq!(
        failing(
            &mut guest,
            &[Buffer::Readable(&header), Buffer::Writable(96)]
        ),
        Some(0)
    );
}

#[test]
fn read_fills_no_more_than_its_room() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), vec![7; 100_000]).unwrap();
    let node = guest.lookup(ROOT, "a").unwrap().node;
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    let body = [longs(&[handle, 0]), fields(&[u32::MAX, 0, 0, 0, 0, 0])].concat();
    assert_eq!(
        guest
            .call_with_room(opcode::READ, node, &body, 1000)
            .unwrap()
            .len(),
        1000
    );
    let body = [longs(&[handle, u64::MAX]), fields(&[10, 0, 0, 0, 0, 0])].concat();
    assert_eq!(
        guest.call(opcode::READ, node, &body).err(),
        Some(Errno::INVAL)
    );
}

#[test]
fn write_of_more_than_it_brings_is_refused() {
    let mut guest = Guest::new();
    let (entry, handle) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    for size in [11, 1 << 21, u32::MAX] {
        let body = [
            longs(&[handle, 0]),
            fields(&[size, 0, 0, 0, 0, 0]),
            vec![1; 10],
        ]
        .concat();
        assert_eq!(
            guest.call(opcode::WRITE, entry.node, &body).err(),
            Some(Errno::INVAL)
        );
    }
    assert!(
        guest
            .write(entry.node, handle, u64::MAX - 1, b"xyz")
            .is_err()
    );
    assert_eq!(fs::metadata(guest.host("a")).unwrap().len(), 0);
}

#[test]
fn directory_read_with_wild_numbers_is_answered() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "").unwrap();
    let handle = guest.opendir(ROOT).unwrap();
    for (offset, size) in [
        (u64::MAX, 4096),
        (1 << 62, 4096),
        (0, u32::MAX),
        (0, 0),
        (0, 31),
    ] {
        for kind in [opcode::READDIR, opcode::READDIRPLUS] {
            let body = [longs(&[handle, offset]), fields(&[size, 0, 0, 0, 0, 0])].concat();
            if let Ok(reply) = guest.call(kind, ROOT, &body) {
                assert!(reply.len() <= size as usize);
            }
        }
    }
}

#[test]
fn attributes_with_wild_sizes_are_refused() {
    let mut guest = Guest::new();
    let (entry, _) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    let body = [fields(&[u32::MAX, 0]), string("user.x"), vec![1; 10]].concat();
    assert_eq!(
        guest.call(opcode::SETXATTR, entry.node, &body).err(),
        Some(Errno::INVAL)
    );
    let body = [fields(&[1, u32::MAX]), string("user.x"), vec![1; 1]].concat();
    assert_eq!(
        guest.call(opcode::SETXATTR, entry.node, &body).err(),
        Some(Errno::INVAL)
    );
    let name = format!("user.{}", "x".repeat(300));
    let body = [fields(&[100, 0]), string(&name)].concat();
    assert_eq!(
        guest.call(opcode::GETXATTR, entry.node, &body).err(),
        Some(Errno::RANGE)
    );
}

#[test]
fn forgetting_more_than_was_told_is_harmless() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "x").unwrap();
    let node = guest.lookup(ROOT, "a").unwrap().node;
    guest.forget(node, u64::MAX);
    guest.forget(node, u64::MAX);
    guest.forget(ROOT, u64::MAX);
    assert_eq!(guest.getattr(node).err(), Some(Errno::STALE));
    assert!(guest.lookup(ROOT, "a").is_ok());
    let mut body = fields(&[u32::MAX, 0]);
    body.extend(longs(&[node, 1, ROOT, 5, 77, 7]));
    let header = guest.header(opcode::BATCH_FORGET, 0, body.len());
    guest.harness.queues[0].add(&[Buffer::Readable(&header), Buffer::Readable(&body)]);
    guest.harness.kick(0);
    assert_eq!(guest.harness.queues[0].take_used().unwrap().1, 0);
}

#[test]
fn version_of_another_age_is_told_ours() {
    let mut guest = Guest::new();
    let body = fields(&[8, 0, 0, 0]);
    let reply = guest.call(opcode::INIT, 0, &body).unwrap();
    assert_eq!(reply[..4], 7u32.to_le_bytes());
    let body = fields(&[6, 0, 0, 0]);
    assert_eq!(guest.call(opcode::INIT, 0, &body).err(), Some(Errno::PROTO));
}

#[test]
fn descriptor_beyond_memory_needs_reset() {
    let mut guest = Guest::new();
    guest.harness.queues[1].set_descriptor(0, u64::MAX - 40, 40, desc::NEXT, 1);
    guest.harness.queues[1].offer(0);
    guest.harness.kick(REQUESTS);
    assert_eq!(guest.harness.interrupt.reset_requests(), 1);
}
