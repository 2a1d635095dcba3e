//! `boot_params`, the "zero page" of the Linux boot protocol.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::initrd::LoadedInitrd;
use super::{LoadedKernel, write};
use crate::machine::error::MachineError;
use crate::machine::layout::{self, MapEntry, MapKind};

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// "Undefined" boot loader: we have no registered number.
const LOADER_UNDEFINED: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");

/// Writes the zero page for a kernel that is entered in 64-bit mode.
///
/// `rsdp` is where the ACPI tables start, where there are any.
///
/// # Errors
/// The zero page lies outside guest memory.
pub fn write_zero_page<M: GuestMemoryBackend>(
    memory: &M,
    kernel: &LoadedKernel,
    command_line_len: usize,
    initrd: Option<LoadedInitrd>,
    map: &[MapEntry],
    rsdp: Option<u64>,
) -> Result<(), MachineError> {
    let mut params = boot_params::default();
    match kernel.setup_header {
        Some(header) => params.hdr = header,
        // An uncompressed kernel reads these without a loader having copied them from its file.
        None => {
            params.hdr.boot_flag = BOOT_FLAG;
            params.hdr.header = HEADER_MAGIC;
            params.hdr.kernel_alignment = 0x100_0000;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line_len as u32;
    if let Some(initrd) = initrd {
        // Both are below 3 GiB.
        params.hdr.ramdisk_image = initrd.address as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
    }
    params.acpi_rsdp_addr = rsdp.unwrap_or(0);
    for (slot, entry) in params.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.size,
            r#type: match entry.kind {
                MapKind::Ram => E820_RAM,
                MapKind::Reserved => E820_RESERVED,
            },
        };
    }
    // The map has four entries at most.
    params.e820_entries = map.len() as u8;
    write(memory, "zero page", layout::ZERO_PAGE, params.as_slice())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::boot::{Entry, testing::memory};

    fn kernel() -> LoadedKernel {
        LoadedKernel {
            entry: Entry::Linux64(0x100_0200),
            start: 0x100_0000,
            end: 0x140_0000,
            command_line_max: 2047,
            initrd_last: 0x1ff_ffff,
            setup_header: None,
            finds_acpi_devices: None,
        }
    }

    fn read<T: ByteValued>(memory: &impl GuestMemoryBackend, offset: u64) -> T {
        memory
            .read_obj(GuestAddress(layout::ZERO_PAGE + offset))
            .unwrap()
    }

    #[test]
    fn zero_page_has_each_field_at_the_offset_of_the_boot_protocol() {
        let memory = memory(32);
        let initrd = LoadedInitrd {
            address: 0x180_0000,
            len: 0x1234,
        };
        let map = layout::memory_map(5 << 30);

        write_zero_page(&memory, &kernel(), 17, Some(initrd), &map, Some(0xe0000)).unwrap();

        assert_eq!(read::<u64>(&memory, 0x70), 0xe0000);
        assert_eq!(read::<u8>(&memory, 0x1e8), 4);
        assert_eq!(read::<u16>(&memory, 0x1fe), 0xaa55);
        assert_eq!(read::<[u8; 4]>(&memory, 0x202), *b"HdrS");
        assert_eq!(read::<u8>(&memory, 0x210), 0xff);
        assert_eq!(read::<u32>(&memory, 0x218), 0x180_0000);
        assert_eq!(read::<u32>(&memory, 0x21c), 0x1234);
        assert_eq!(read::<u32>(&memory, 0x228), 0x2_0000);
        assert_eq!(read::<u64>(&memory, 0x2d0), 0);
        assert_eq!(read::<u64>(&memory, 0x2d8), layout::BASE_MEMORY_END);
        assert_eq!(read::<u32>(&memory, 0x2e0), 1);
        assert_eq!(read::<u64>(&memory, 0x2d0 + 3 * 20), 4 << 30);
        assert_eq!(read::<u64>(&memory, 0x2d8 + 3 * 20), 2 << 30);
    }

    #[test]
    fn zero_page_hands_a_bzimage_its_own_header_back() {
        let memory = memory(32);
        let mut kernel = kernel();
        kernel.setup_header = Some(linux_loader::loader::bootparam::setup_header {
            version: 0x20f,
            init_size: 0x12_3456,
            ..Default::default()
        });

        write_zero_page(&memory, &kernel, 0, None, &[], None).unwrap();

        assert_eq!(read::<u16>(&memory, 0x206), 0x20f);
        assert_eq!(read::<u32>(&memory, 0x260), 0x12_3456);
        assert_eq!(read::<u32>(&memory, 0x218), 0);
    }
}
