//! Kernels made of a few bytes, each wrong in one way.

use capsa_virtio::GuestRam;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::boot::testing::memory;

const LOW: u64 = 32 << 20;
const LOAD_AT: u64 = 0x100_0000;

struct Part {
    kind: u32,
    address: u64,
    bytes: Vec<u8>,
    memory_len: u64,
}

fn load_part(address: u64, bytes: &[u8]) -> Part {
    Part {
        kind: SEGMENT_LOAD,
        address,
        bytes: bytes.to_vec(),
        memory_len: bytes.len() as u64 + 0x1000,
    }
}

fn note_part(name: &[u8; 4], kind: u32, value: &[u8]) -> Part {
    let mut bytes = Vec::new();
    bytes.extend(4u32.to_le_bytes());
    bytes.extend((value.len() as u32).to_le_bytes());
    bytes.extend(kind.to_le_bytes());
    bytes.extend(name);
    bytes.extend(value);
    Part {
        kind: SEGMENT_NOTE,
        address: 0,
        memory_len: bytes.len() as u64,
        bytes,
    }
}

fn elf(entry: u64, parts: &[Part]) -> Vec<u8> {
    let mut file = vec![0u8; 64];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[16..18].copy_from_slice(&TYPE_EXECUTABLE.to_le_bytes());
    file[18..20].copy_from_slice(&MACHINE_X86_64.to_le_bytes());
    file[24..32].copy_from_slice(&entry.to_le_bytes());
    file[32..40].copy_from_slice(&64u64.to_le_bytes());
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&(parts.len() as u16).to_le_bytes());
    let mut offset = 64 + 56 * parts.len() as u64;
    for p in parts {
        let mut header = vec![0u8; 56];
        header[..4].copy_from_slice(&p.kind.to_le_bytes());
        header[8..16].copy_from_slice(&offset.to_le_bytes());
        header[24..32].copy_from_slice(&p.address.to_le_bytes());
        header[32..40].copy_from_slice(&(p.bytes.len() as u64).to_le_bytes());
        header[40..48].copy_from_slice(&p.memory_len.to_le_bytes());
        file.extend(header);
        offset += p.bytes.len() as u64;
    }
    for p in parts {
        file.extend(&p.bytes);
    }
    file
}

fn simple() -> Vec<u8> {
    elf(LOAD_AT, &[load_part(LOAD_AT, b"code")])
}

fn load_into(memory: &GuestRam, bytes: &[u8]) -> Result<LoadedKernel, KernelError> {
    load_bytes(memory, LOW, bytes)
}

fn refusal(bytes: &[u8]) -> KernelError {
    load_into(&memory(32), bytes).unwrap_err()
}

#[test]
fn elf_without_note_is_entered_in_64_bit_mode() {
    let memory = memory(32);

    let kernel = load_into(&memory, &simple()).unwrap();

    assert_eq!(kernel.entry, Entry::Linux64(LOAD_AT));
    assert_eq!((kernel.start, kernel.end), (LOAD_AT, LOAD_AT + 4 + 0x1000));
    let mut code = [0u8; 4];
    memory.read_slice(&mut code, GuestAddress(LOAD_AT)).unwrap();
    assert_eq!(&code, b"code");
}

#[test]
fn elf_with_pvh_note_behind_another_note_is_entered_by_pvh() {
    let mut notes = note_part(b"GNU\0", 3, b"build-id-of-17 by");
    notes.bytes.extend([0; 3]);
    notes
        .bytes
        .extend(note_part(b"Xen\0", NOTE_PVH_ENTRY, &0x100_0002u32.to_le_bytes()).bytes);
    let file = elf(LOAD_AT, &[load_part(LOAD_AT, b"code"), notes]);

    let kernel = load_into(&memory(32), &file).unwrap();

    assert_eq!(kernel.entry, Entry::Pvh(0x100_0002));
}

#[test]
fn elf_with_note_lengths_beyond_the_segment_is_entered_in_64_bit_mode() {
    let mut notes = note_part(b"GNU\0", 3, b"1234");
    notes.bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let file = elf(LOAD_AT, &[load_part(LOAD_AT, b"code"), notes]);

    let kernel = load_into(&memory(32), &file).unwrap();

    assert_eq!(kernel.entry, Entry::Linux64(LOAD_AT));
}

#[test]
fn elf_for_aarch64_is_wrong_architecture() {
    let mut file = simple();
    file[18] = 183;

    let error = refusal(&file);

    assert!(matches!(&error, KernelError::WrongArchitecture { found } if found == "AArch64"));
}

#[test]
fn elf_cut_inside_the_header_is_truncated() {
    let error = refusal(&simple()[..40]);

    assert!(matches!(
        error,
        KernelError::Truncated {
            what: "ELF header",
            ..
        }
    ));
}

#[test]
fn elf_cut_inside_a_segment_is_truncated() {
    let file = simple();

    let error = refusal(&file[..file.len() - 1]);

    assert!(matches!(
        error,
        KernelError::Truncated {
            what: "loadable segment",
            ..
        }
    ));
}

#[test]
fn elf_larger_than_memory_says_how_much_it_needs() {
    let file = elf(LOW, &[load_part(LOW, b"code")]);

    let error = refusal(&file);

    assert_eq!(
        error.to_string(),
        "needs 33 MiB of memory at its load address, the machine has 32 MiB: raise `memory`"
    );
}

#[test]
fn elf_below_one_mebibyte_is_corrupt() {
    assert!(matches!(
        refusal(&elf(0x1000, &[load_part(0x1000, b"code")])),
        KernelError::Corrupt(_)
    ));
}

#[test]
fn elf_with_overlapping_segments_is_corrupt() {
    let file = elf(
        LOAD_AT,
        &[load_part(LOAD_AT, b"one"), load_part(LOAD_AT + 1, b"two")],
    );

    assert!(matches!(refusal(&file), KernelError::Corrupt(_)));
}

#[test]
fn elf_with_entry_outside_its_segments_is_corrupt() {
    assert!(matches!(
        refusal(&elf(LOAD_AT - 1, &[load_part(LOAD_AT, b"code")])),
        KernelError::Corrupt(_)
    ));
}

#[test]
fn elf_segment_wrapping_the_address_space_is_corrupt() {
    let mut part = load_part(LOAD_AT, b"code");
    part.memory_len = u64::MAX;

    assert!(matches!(
        refusal(&elf(LOAD_AT, &[part])),
        KernelError::Corrupt(_)
    ));
}

#[test]
fn elf_with_thousands_of_segments_is_corrupt() {
    let mut file = simple();
    file[56..58].copy_from_slice(&60_000u16.to_le_bytes());

    assert!(matches!(refusal(&file), KernelError::Corrupt(_)));
}

#[test]
fn elf_object_file_is_corrupt() {
    let mut file = simple();
    file[16] = 1;

    assert!(matches!(refusal(&file), KernelError::Corrupt(_)));
}

/// Adds a section table that names `data` (which must end the file's only segment) `.rodata`.
fn with_rodata(data: &[u8]) -> Vec<u8> {
    let mut part = load_part(LOAD_AT, data);
    part.bytes.resize(data.len().next_multiple_of(8), 0);
    let mut file = elf(LOAD_AT, &[part]);
    let data_offset = 64 + 56u64;
    let names_offset = file.len() as u64;
    file.extend(b"\0.rodata\0.shstrtab\0");
    let sections_offset = file.len() as u64;
    for (name, offset, size) in [
        (1u32, data_offset, data.len() as u64),
        (9, names_offset, 19),
    ] {
        let mut section = [0u8; 64];
        section[..4].copy_from_slice(&name.to_le_bytes());
        section[24..32].copy_from_slice(&offset.to_le_bytes());
        section[32..40].copy_from_slice(&size.to_le_bytes());
        file.extend(section);
    }
    file[40..48].copy_from_slice(&sections_offset.to_le_bytes());
    file[58..60].copy_from_slice(&64u16.to_le_bytes());
    file[60..62].copy_from_slice(&2u16.to_le_bytes());
    file[62..64].copy_from_slice(&1u16.to_le_bytes());
    file
}

#[test]
fn elf_with_the_acpi_identifier_finds_acpi_devices() {
    let kernel = load_into(&memory(32), &with_rodata(b"12345678LNRO0005tail")).unwrap();

    assert_eq!(kernel.finds_acpi_devices, Some(true));
}

#[test]
fn elf_without_the_acpi_identifier_does_not_find_acpi_devices() {
    let kernel = load_into(&memory(32), &with_rodata(b"12345678QEMU0002tail")).unwrap();

    assert_eq!(kernel.finds_acpi_devices, Some(false));
}

#[test]
fn elf_without_sections_leaves_acpi_devices_open() {
    let kernel = load_into(&memory(32), &simple()).unwrap();

    assert_eq!(kernel.finds_acpi_devices, None);
}
