//! What the processor itself needs: descriptor table and page tables for the first instruction,
//! code at the reset vector for the last one.

use vm_memory::GuestMemoryBackend;

use super::write;
use crate::machine::error::MachineError;
use crate::machine::layout;

const PAGE: u64 = 4096;
const LARGE_PAGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;

/// Flat 32-bit code. The selectors (0x10 and 0x18) are those of the Linux boot protocol.
pub const CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// Flat 64-bit code.
pub const CODE64: u64 = 0x00af_9b00_0000_ffff;
/// Flat data.
pub const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A task state segment of 104 bytes at 0, as VM entry demands one.
pub const TASK: u64 = 0x0000_8b00_0000_0067;
/// Bytes in the descriptor table.
pub const GDT_LEN: u16 = 5 * 8;

/// Writes the descriptor table: null, null, code at 0x10, data at 0x18, task state at 0x20.
///
/// # Errors
/// It lies outside guest memory.
pub fn write_gdt<M: GuestMemoryBackend>(memory: &M, code: u64) -> Result<(), MachineError> {
    let mut bytes = [0u8; GDT_LEN as usize];
    for (slot, entry) in bytes.chunks_exact_mut(8).zip([0, 0, code, DATA, TASK]) {
        slot.copy_from_slice(&entry.to_le_bytes());
    }
    write(memory, "descriptor table", layout::GDT_ADDRESS, &bytes)
}

/// Maps addresses one to one with 2 MiB pages, from 0 to at least `end` (at most 3 GiB).
///
/// # Errors
/// The tables lie outside guest memory.
pub fn write_identity_map<M: GuestMemoryBackend>(memory: &M, end: u64) -> Result<(), MachineError> {
    const WHAT: &str = "page tables";
    let gibibytes = end.clamp(1, 3 * GIB).div_ceil(GIB);
    let pointers = layout::PAGE_TABLES + PAGE;
    write(
        memory,
        WHAT,
        layout::PAGE_TABLES,
        &(pointers | PRESENT_WRITABLE).to_le_bytes(),
    )?;
    for i in 0..gibibytes {
        let directory = pointers + (i + 1) * PAGE;
        write(
            memory,
            WHAT,
            pointers + i * 8,
            &(directory | PRESENT_WRITABLE).to_le_bytes(),
        )?;
        let mut entries = [0u8; PAGE as usize];
        for (j, entry) in (0u64..).zip(entries.chunks_exact_mut(8)) {
            let page = i * GIB + j * LARGE_PAGE;
            entry.copy_from_slice(&(page | LARGE | PRESENT_WRITABLE).to_le_bytes());
        }
        write(memory, WHAT, directory, &entries)?;
    }
    Ok(())
}

/// `mov al, 0xfe; out 0x64, al; hlt`: the keyboard controller's reset command.
const RESET_CODE: [u8; 5] = [0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// Writes what a firmware would have at the reset vector: code that resets the machine.
///
/// Linux 6.1, for one, jumps there to reboot when ACPI is hardware-reduced and there is no EFI,
/// without trying anything else before.
///
/// # Errors
/// It lies outside guest memory.
pub fn write_reset_vector<M: GuestMemoryBackend>(memory: &M) -> Result<(), MachineError> {
    write(memory, "reset vector", layout::RESET_VECTOR, &RESET_CODE)
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::boot::testing::memory;

    /// Walks the tables as the processor does.
    fn translate(memory: &impl GuestMemoryBackend, address: u64) -> Option<u64> {
        let mut table = layout::PAGE_TABLES;
        for shift in [39, 30, 21] {
            let entry: u64 = memory
                .read_obj(GuestAddress(table + ((address >> shift) & 511) * 8))
                .unwrap();
            if entry & 1 == 0 {
                return None;
            }
            if shift == 21 {
                assert_ne!(entry & LARGE, 0);
                return Some((entry & !(LARGE_PAGE - 1)) + (address & (LARGE_PAGE - 1)));
            }
            table = entry & !(PAGE - 1);
        }
        None
    }

    #[test]
    fn identity_map_covers_every_byte_asked_for() {
        let memory = memory(32);

        write_identity_map(&memory, 2 * GIB + 1).unwrap();

        for address in [
            0,
            0x12_3456,
            GIB - 1,
            GIB,
            2 * GIB,
            2 * GIB + 1,
            3 * GIB - 1,
        ] {
            assert_eq!(translate(&memory, address), Some(address));
        }
    }

    #[test]
    fn identity_map_ends_at_the_next_gibibyte() {
        let memory = memory(32);

        write_identity_map(&memory, 64 << 20).unwrap();

        assert_eq!(translate(&memory, GIB - 1), Some(GIB - 1));
        assert_eq!(translate(&memory, GIB), None);
    }
}
