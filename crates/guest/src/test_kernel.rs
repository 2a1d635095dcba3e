//! A file that passes for a kernel of this host, for tests.

use crate::Arch;

/// The smallest kernel that passes inspection here, with the release `release`.
pub(crate) fn host_kernel(release: &str) -> Vec<u8> {
    match Arch::host() {
        Some(Arch::Aarch64) => arm64_image(release),
        _ => bzimage(release),
    }
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

fn bzimage(release: &str) -> Vec<u8> {
    let mut bytes = vec![0; 2 * 512 + 0x1000];
    put(&mut bytes, 0x1f1, &[1]);
    put(&mut bytes, 0x1f4, &0x100u32.to_le_bytes());
    put(&mut bytes, 0x1fe, &[0x55, 0xaa]);
    put(&mut bytes, 0x202, b"HdrS\x0f\x02");
    put(&mut bytes, 0x20e, &0x100u16.to_le_bytes());
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x236, &[1]);
    put(&mut bytes, 0x300, format!("{release} #1\0").as_bytes());
    bytes
}

fn arm64_image(release: &str) -> Vec<u8> {
    let mut bytes = vec![0; 0x1000];
    put(&mut bytes, 56, b"ARM\x64");
    put(
        &mut bytes,
        0x100,
        format!("Linux version {release} (me)").as_bytes(),
    );
    bytes
}
