use std::io::Cursor;
use std::path::Path;

use proptest::prelude::*;

use super::*;

const ENTRY: u64 = 0x20_0000;
const PVH_ENTRY: u64 = 0x20_0040;

fn inspect_bytes(bytes: &[u8]) -> Result<KernelImage, InspectError> {
    inspect_reader(
        &mut Cursor::new(bytes),
        Path::new("/boot/the-kernel"),
        Detail::Version,
    )
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// A `vmlinux` with one loaded segment at 2 MiB and one note segment.
fn elf_kernel() -> Vec<u8> {
    let mut bytes = vec![0; 0x2000];
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 16, &2u16.to_le_bytes());
    put(&mut bytes, 18, &62u16.to_le_bytes());
    put(&mut bytes, 24, &ENTRY.to_le_bytes());
    put(&mut bytes, 32, &64u64.to_le_bytes());
    put(&mut bytes, 54, &56u16.to_le_bytes());
    put(&mut bytes, 56, &2u16.to_le_bytes());
    // PT_LOAD: the second page of the file, and a zeroed page behind it.
    put(&mut bytes, 64, &1u32.to_le_bytes());
    for (field, value) in [
        (8, 0x1000),
        (16, ENTRY),
        (24, ENTRY),
        (32, 0x1000),
        (40, 0x2000),
    ] {
        put(&mut bytes, 64 + field, &u64::to_le_bytes(value));
    }
    // PT_NOTE: two notes, the second one is PVH's.
    put(&mut bytes, 120, &4u32.to_le_bytes());
    for (field, value) in [(8, 0x400), (32, 44), (40, 44), (48, 4)] {
        put(&mut bytes, 120 + field, &u64::to_le_bytes(value));
    }
    put(&mut bytes, 0x400, &note(b"Linux\0", 0x100, b"xyz"));
    put(
        &mut bytes,
        0x418,
        &note(b"Xen\0", 18, &(PVH_ENTRY as u32).to_le_bytes()),
    );
    put(
        &mut bytes,
        0x1800,
        b"Linux version 6.12.1-test (me@here) #1 SMP",
    );
    bytes
}

fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for number in [name.len() as u32, value.len() as u32, kind] {
        note.extend_from_slice(&number.to_le_bytes());
    }
    for part in [name, value] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// A bzImage with two setup sectors and 64 KiB of protected-mode code.
fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 3 * 512 + 0x1_0000];
    put(&mut bytes, 0, b"MZ");
    put(&mut bytes, 0x1f1, &[2]);
    put(&mut bytes, 0x1f4, &0x1000u32.to_le_bytes());
    put(&mut bytes, 0x1fe, &[0x55, 0xaa]);
    put(&mut bytes, 0x202, b"HdrS");
    put(&mut bytes, 0x206, &0x020fu16.to_le_bytes());
    put(&mut bytes, 0x20e, &0x200u16.to_le_bytes());
    put(&mut bytes, 0x211, &[1]);
    put(&mut bytes, 0x236, &1u16.to_le_bytes());
    put(&mut bytes, 0x248, &0x100u32.to_le_bytes());
    put(&mut bytes, 0x24c, &0x8000u32.to_le_bytes());
    put(&mut bytes, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut bytes, 0x260, &0x200_0000u32.to_le_bytes());
    put(&mut bytes, 0x400, b"6.1.0-test (me@here) #1 SMP\0");
    put(&mut bytes, 3 * 512 + 0x100, &[0x02, 0x21, 0x4c, 0x18]);
    bytes
}

fn arm64_image() -> Vec<u8> {
    let mut bytes = vec![0; 0x1000];
    put(&mut bytes, 0, b"MZ");
    put(&mut bytes, 16, &0x8000u64.to_le_bytes());
    put(&mut bytes, 56, b"ARM\x64");
    put(&mut bytes, 0x800, b"Linux version 6.12.2-arm (me@here)");
    bytes
}

#[test]
fn elf_with_pvh_note_is_recognised() {
    let image = inspect_bytes(&elf_kernel()).unwrap();

    assert_eq!(image.format, KernelFormat::Elf);
    assert_eq!(image.arch, Arch::X86_64);
    assert_eq!(image.version.as_deref(), Some("6.12.1-test"));
    assert_eq!(image.pvh_entry(), Some(PVH_ENTRY));
    assert_eq!(image.memory_end, ENTRY + 0x2000);
    assert_eq!(
        image.to_string(),
        "ELF vmlinux for x86_64, with PVH entry, Linux 6.12.1-test"
    );
}

#[test]
fn elf_without_notes_has_no_pvh_entry() {
    let mut bytes = elf_kernel();
    put(&mut bytes, 120, &0u32.to_le_bytes());

    let image = inspect_bytes(&bytes).unwrap();

    assert_eq!(image.pvh_entry(), None);
    assert_eq!(image.elf.unwrap().entry, ENTRY);
}

#[test]
fn elf_version_is_not_searched_for_its_headers_alone() {
    let bytes = elf_kernel();

    let image = inspect_reader(
        &mut Cursor::new(&bytes),
        Path::new("kernel"),
        Detail::Headers,
    )
    .unwrap();

    assert_eq!(image.version, None);
}

#[test]
fn elf_cut_off_in_a_segment_is_truncated() {
    let bytes = elf_kernel();

    let error = inspect_bytes(&bytes[..0x1fff]).unwrap_err();

    assert_eq!(
        error.to_string(),
        "/boot/the-kernel: it is a truncated ELF vmlinux: its headers tell of 8192 bytes, and it \
         has only 8191; copy or build it again"
    );
}

#[test]
fn elf_with_entry_outside_its_segments_is_corrupt() {
    let mut bytes = elf_kernel();
    put(&mut bytes, 24, &(ENTRY + 0x1000).to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(
        matches!(error.kind, InspectErrorKind::Corrupt { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("0x201000"), "{error}");
}

#[test]
fn elf_with_pvh_entry_outside_its_segments_is_corrupt() {
    let mut bytes = elf_kernel();
    put(&mut bytes, 0x418 + 16, &0x10u32.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(
        error.to_string().contains("PVH entry point (0x10)"),
        "{error}"
    );
}

#[test]
fn elf_with_segment_beyond_the_address_space_is_corrupt() {
    let mut bytes = elf_kernel();
    put(&mut bytes, 64 + 24, &u64::MAX.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(error.to_string().contains("address space"), "{error}");
}

#[test]
fn elf_program_is_not_a_kernel() {
    let mut bytes = elf_kernel();
    put(&mut bytes, 120, &3u32.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(
        error.to_string().contains("it is a program, not a kernel"),
        "{error}"
    );
}

#[test]
fn elf_for_arm_names_the_file_to_give() {
    let mut bytes = elf_kernel();
    put(&mut bytes, 18, &183u16.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(
        error.to_string().contains("arch/arm64/boot/Image"),
        "{error}"
    );
}

#[test]
fn elf_for_32_bits_is_refused() {
    let mut bytes = elf_kernel();
    put(&mut bytes, 4, &[1]);
    put(&mut bytes, 18, &3u16.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(error.to_string().contains("32-bit x86"), "{error}");
}

#[test]
fn bzimage_tells_release_and_compression() {
    let image = inspect_bytes(&bzimage()).unwrap();

    assert_eq!(image.format, KernelFormat::BzImage);
    assert_eq!(image.version.as_deref(), Some("6.1.0-test"));
    assert_eq!(image.memory_end, 0x300_0000);
    let setup = image.setup.unwrap();
    assert_eq!(setup.compression, Compression::Lz4);
    assert_eq!(setup.protocol, 0x020f);
}

#[test]
fn bzimage_one_byte_short_is_truncated() {
    let bytes = bzimage();

    let error = inspect_bytes(&bytes[..bytes.len() - 1]).unwrap_err();

    assert!(
        matches!(error.kind, InspectErrorKind::Truncated { .. }),
        "{error}"
    );
}

#[test]
fn bzimage_cut_off_in_its_header_is_truncated() {
    let error = inspect_bytes(&bzimage()[..0x210]).unwrap_err();

    assert!(
        matches!(error.kind, InspectErrorKind::Truncated { .. }),
        "{error}"
    );
}

#[test]
fn bzimage_with_payload_beyond_its_end_is_corrupt() {
    let mut bytes = bzimage();
    put(&mut bytes, 0x24c, &u32::MAX.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(
        matches!(error.kind, InspectErrorKind::Corrupt { .. }),
        "{error}"
    );
}

#[test]
fn bzimage_without_64_bit_entry_is_refused() {
    let mut bytes = bzimage();
    put(&mut bytes, 0x236, &0u16.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(error.to_string().contains("32-bit x86"), "{error}");
}

#[test]
fn bzimage_of_an_old_protocol_is_refused() {
    let mut bytes = bzimage();
    put(&mut bytes, 0x206, &0x0204u16.to_le_bytes());

    let error = inspect_bytes(&bytes).unwrap_err();

    assert!(error.to_string().contains("boot protocol 2.04"), "{error}");
}

#[test]
fn bzimage_with_a_release_pointer_outside_its_setup_has_no_release() {
    let mut bytes = bzimage();
    put(&mut bytes, 0x20e, &0xfff0u16.to_le_bytes());

    assert_eq!(inspect_bytes(&bytes).unwrap().version, None);
}

#[test]
fn arm64_image_is_recognised() {
    let image = inspect_bytes(&arm64_image()).unwrap();

    assert_eq!(image.format, KernelFormat::Arm64Image);
    assert_eq!(image.arch, Arch::Aarch64);
    assert_eq!(image.version.as_deref(), Some("6.12.2-arm"));
}

#[test]
fn kernel_for_another_processor_names_both() {
    let image = inspect_bytes(&arm64_image()).unwrap();

    let error = image
        .require_arch(Path::new("Image"), Arch::X86_64)
        .unwrap_err();

    assert_eq!(
        error.to_string(),
        "Image: it is a kernel for aarch64, and this machine's guests are x86_64; give a kernel \
         built for x86_64"
    );
}

#[test]
fn files_of_other_kinds_are_called_by_their_name() {
    let mut disk = vec![0; 4096];
    put(&mut disk, 0x1fe, &[0x55, 0xaa]);
    let mut ext4 = vec![0; 4096];
    put(&mut ext4, 0x438, &[0x53, 0xef]);
    let mut unified = vec![0; 4096];
    put(&mut unified, 0, b"MZ");
    put(&mut unified, 0x300, b".linux\0\0");
    let cases: [(&[u8], &str); 9] = [
        (b"", "it is empty"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"\x28\xb5\x2f\xfd\0", "Zstandard"),
        (b"#!/bin/sh\necho", "a script"),
        (b"070701000000", "initramfs"),
        (b"just words\n", "a text file"),
        (&disk, "a disk image"),
        (&ext4, "ext4"),
        (&unified, "unified kernel image"),
    ];
    for (bytes, expected) in cases {
        let error = inspect_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn paths_that_are_no_files_are_called_by_their_name() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    let socket = directory.path().join("socket");
    // A command, because rustix has no call for it on macOS.
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let cases = [
        (directory.path(), "it is a directory"),
        (&pipe, "it is a pipe"),
        (&socket, "it is a socket"),
        (Path::new("/dev/null"), "it is a device"),
        (&directory.path().join("none"), "there is no such file"),
    ];
    for (path, expected) in cases {
        let error = inspect(path).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn this_very_program_is_not_a_kernel() {
    let error = inspect(&std::env::current_exe().unwrap()).unwrap_err();

    assert!(
        matches!(error.kind, InspectErrorKind::NotAKernel { .. }),
        "{error}"
    );
}

#[test]
fn error_becomes_one_of_the_kernel_setting() {
    let error = inspect_bytes(b"").unwrap_err();

    let error = capsa_core::Error::from(error);

    assert_eq!(
        error.to_string(),
        "kernel: /boot/the-kernel: it is empty; copy or build it again"
    );
}

/// What the fuzzer starts from, and whatever it found once.
#[test]
fn fuzz_seeds_are_answered_without_a_panic() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/kernel_image");
    let mut kernels = Vec::new();
    for entry in std::fs::read_dir(seeds).unwrap() {
        let entry = entry.unwrap();
        let bytes = std::fs::read(entry.path()).unwrap();
        if inspect_bytes(&bytes).is_ok() {
            kernels.push(entry.file_name().into_string().unwrap());
        }
    }
    kernels.sort();

    assert_eq!(kernels, ["arm64-image", "bzimage", "vmlinux"]);
}

proptest! {
    #[test]
    fn any_bytes_are_answered_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = inspect_bytes(&bytes);
    }

    #[test]
    fn any_damage_to_a_kernel_is_answered_without_a_panic(
        which in 0..3usize,
        damage in prop::collection::vec((0..0x500usize, any::<u8>()), 1..24),
        length in 0..0x1_1000usize,
    ) {
        let mut bytes = [elf_kernel(), bzimage(), arm64_image()][which].clone();
        for (offset, value) in damage {
            bytes[offset] = value;
        }
        bytes.truncate(length);
        if let Ok(image) = inspect_bytes(&bytes) {
            if let Some(elf) = image.elf {
                prop_assert!(elf.load_start <= elf.entry && elf.entry < elf.load_end);
            }
            if let Some(setup) = image.setup {
                prop_assert!(setup.protected_offset + setup.protected_bytes <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn every_cut_of_a_kernel_is_refused(which in 0..2usize, part in 0.0..1.0f64) {
        let bytes = [elf_kernel(), bzimage()][which].clone();
        let length = (bytes.len() as f64 * part) as usize;
        prop_assert!(inspect_bytes(&bytes[..length]).is_err());
    }
}
