//! MP tables: processors and interrupts for kernels without ACPI.
//!
//! *Intel MultiProcessor Specification 1.4*, chapter 4.

use vm_memory::GuestMemoryBackend;

use super::write;
use crate::machine::error::MachineError;
use crate::machine::layout;

const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;
const SPEC_1_4: u8 = 4;
/// Version register of an integrated local APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
/// Version register of KVM's IOAPIC.
const IOAPIC_VERSION: u8 = 0x11;
const IOAPIC_PINS: u8 = 24;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Features that kernels look at here: an FPU and a local APIC.
const CPU_FEATURES: u32 = 1 | 1 << 9;
const CPU_SIGNATURE: u32 = 0x600;
const ISA_BUS: u8 = 0;
const INTERRUPT: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL_INTERRUPT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_sub(*b))
}

/// The tables for `vcpus` processors (1 to 64), to be placed at `address`.
pub fn tables(vcpus: u8, address: u32) -> Vec<u8> {
    let ioapic_id = vcpus;
    let mut entries = Vec::with_capacity(64 * 20 + 28 * 8);
    let mut count = 0u16;
    let mut entry = |bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus {
        let mut processor = [0u8; 20];
        let flags = if id == 0 {
            ENABLED | BOOT_PROCESSOR
        } else {
            ENABLED
        };
        processor[..4].copy_from_slice(&[0, id, LOCAL_APIC_VERSION, flags]);
        processor[4..8].copy_from_slice(&CPU_SIGNATURE.to_le_bytes());
        processor[8..12].copy_from_slice(&CPU_FEATURES.to_le_bytes());
        entry(&processor);
    }
    entry(&[1, ISA_BUS, b'I', b'S', b'A', b' ', b' ', b' ']);
    let ioapic = layout::IOAPIC_ADDRESS.to_le_bytes();
    entry(&[
        2,
        ioapic_id,
        IOAPIC_VERSION,
        ENABLED,
        ioapic[0],
        ioapic[1],
        ioapic[2],
        ioapic[3],
    ]);
    // Every pin is wired to the interrupt of its own number; edge-triggered, as ISA's are.
    for pin in 0..IOAPIC_PINS {
        entry(&[3, INTERRUPT, 0, 0, ISA_BUS, pin, ioapic_id, pin]);
    }
    entry(&[4, EXTERNAL_INTERRUPT, 0, 0, ISA_BUS, 0, 0, 0]);
    entry(&[4, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);

    let mut header = [0u8; HEADER_LEN];
    header[..4].copy_from_slice(b"PCMP");
    // At most 44 + 64 * 20 + 28 * 8 bytes.
    header[4..6].copy_from_slice(&((HEADER_LEN + entries.len()) as u16).to_le_bytes());
    header[6] = SPEC_1_4;
    header[8..16].copy_from_slice(b"CAPSA   ");
    header[16..28].copy_from_slice(b"CAPSA VM    ");
    header[34..36].copy_from_slice(&count.to_le_bytes());
    header[36..40].copy_from_slice(&layout::LOCAL_APIC_ADDRESS.to_le_bytes());
    header[7] = checksum(&header).wrapping_add(checksum(&entries));

    let mut pointer = [0u8; POINTER_LEN];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(address + POINTER_LEN as u32).to_le_bytes());
    pointer[8] = 1;
    pointer[9] = SPEC_1_4;
    pointer[10] = checksum(&pointer);

    let mut tables = Vec::with_capacity(POINTER_LEN + HEADER_LEN + entries.len());
    tables.extend_from_slice(&pointer);
    tables.extend_from_slice(&header);
    tables.extend_from_slice(&entries);
    tables
}

/// Writes the tables where kernels look for them.
///
/// # Errors
/// They lie outside guest memory.
pub fn write_tables<M: GuestMemoryBackend>(memory: &M, vcpus: u8) -> Result<(), MachineError> {
    let address = layout::MP_TABLE;
    write(memory, "MP tables", address, &tables(vcpus, address as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    #[test]
    fn tables_of_1_and_64_processors_have_valid_checksums_and_counts() {
        for vcpus in [1u8, 64] {
            let tables = tables(vcpus, 0xf0000);
            let (pointer, table) = tables.split_at(16);
            let len = u16::from_le_bytes([table[4], table[5]]) as usize;
            let count = u16::from_le_bytes([table[34], table[35]]) as usize;

            assert_eq!(sum(pointer), 0);
            assert_eq!(sum(table), 0);
            assert_eq!(len, table.len());
            assert_eq!(count, usize::from(vcpus) + 28);
            assert_eq!(
                table.len(),
                44 + usize::from(vcpus) * 20 + (count - usize::from(vcpus)) * 8
            );
            assert_eq!(pointer[4..8], 0xf0010u32.to_le_bytes());
        }
    }

    #[test]
    fn only_the_first_processor_is_the_boot_processor() {
        let tables = tables(2, 0xf0000);
        let processors = &tables[16 + 44..];

        assert_eq!(processors[3], ENABLED | BOOT_PROCESSOR);
        assert_eq!(processors[20 + 3], ENABLED);
    }

    #[test]
    fn tables_of_64_processors_fit_their_room() {
        assert!(tables(64, 0xf0000).len() as u64 <= layout::MP_TABLE_ROOM);
    }
}
