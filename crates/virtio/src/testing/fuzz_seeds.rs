//! The fuzzers' seeds, and what they have found, played again.

use super::fuzz;

fn play(name: &str, target: fn(&[u8])) {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/");
    let mut count = 0;
    for entry in std::fs::read_dir(format!("{seeds}{name}")).unwrap() {
        target(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "{name} has no seeds");
    // The shortest scripts, and some noise.
    target(b"");
    let mut noise = 1u32;
    for len in 1..200 {
        let bytes: Vec<u8> = std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 17;
            noise ^= noise << 5;
            noise as u8
        })
        .take(len)
        .collect();
        target(&bytes);
    }
}

#[test]
fn queue_survives_its_seeds() {
    play("virtio_queue", fuzz::queue);
}

#[test]
fn block_survives_its_seeds() {
    play("virtio_block", fuzz::block);
}

#[test]
fn fs_survives_its_seeds() {
    play("virtio_fs", fuzz::fs);
}

#[test]
fn vsock_survives_its_seeds() {
    play("virtio_vsock", fuzz::vsock);
}

#[test]
fn balloon_survives_its_seeds() {
    play("virtio_balloon", fuzz::balloon);
}

#[test]
fn mmio_registers_survive_their_seeds() {
    play("virtio_mmio", fuzz::mmio);
}

#[test]
fn qcow2_headers_survive_their_seeds() {
    play("qcow2_header", fuzz::qcow2_header);
}

#[test]
fn qcow2_images_survive_their_seeds() {
    play("qcow2_image", fuzz::qcow2_image);
}
