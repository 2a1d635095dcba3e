//! `hvm_start_info` of the *x86/HVM direct boot ABI* (PVH), version 1.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_MEMMAP_TYPE_RAM, XEN_HVM_MEMMAP_TYPE_RESERVED, XEN_HVM_START_MAGIC_VALUE,
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::initrd::LoadedInitrd;
use super::write;
use crate::machine::error::MachineError;
use crate::machine::layout::{self, MapEntry, MapKind};

/// Writes start info, module list and memory map for a kernel that is entered by PVH.
///
/// # Errors
/// One of them lies outside guest memory.
pub fn write_start_info<M: GuestMemoryBackend>(
    memory: &M,
    initrd: Option<LoadedInitrd>,
    map: &[MapEntry],
    rsdp: Option<u64>,
) -> Result<(), MachineError> {
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() {
            layout::PVH_MODULES
        } else {
            0
        },
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: rsdp.unwrap_or(0),
        memmap_paddr: layout::PVH_MEMORY_MAP,
        // The map has four entries at most.
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    write(
        memory,
        "PVH start info",
        layout::PVH_START_INFO,
        info.as_slice(),
    )?;
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.address,
            size: initrd.len,
            ..Default::default()
        };
        write(
            memory,
            "PVH module list",
            layout::PVH_MODULES,
            module.as_slice(),
        )?;
    }
    let mut address = layout::PVH_MEMORY_MAP;
    for entry in map {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: match entry.kind {
                MapKind::Ram => XEN_HVM_MEMMAP_TYPE_RAM,
                MapKind::Reserved => XEN_HVM_MEMMAP_TYPE_RESERVED,
            },
            reserved: 0,
        };
        write(memory, "PVH memory map", address, entry.as_slice())?;
        address += size_of::<hvm_memmap_table_entry>() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::boot::testing::memory;

    fn read<T: ByteValued>(memory: &impl GuestMemoryBackend, address: u64) -> T {
        memory.read_obj(GuestAddress(address)).unwrap()
    }

    #[test]
    fn start_info_points_at_initrd_command_line_tables_and_map() {
        let memory = memory(32);
        let initrd = LoadedInitrd {
            address: 0x180_0000,
            len: 0x1234,
        };
        let map = layout::memory_map(32 << 20);

        write_start_info(&memory, Some(initrd), &map, Some(0xe0000)).unwrap();

        let info = layout::PVH_START_INFO;
        assert_eq!(read::<u32>(&memory, info), 0x336e_c578);
        assert_eq!(read::<u32>(&memory, info + 4), 1);
        assert_eq!(read::<u32>(&memory, info + 12), 1);
        assert_eq!(read::<u64>(&memory, info + 24), layout::COMMAND_LINE);
        assert_eq!(read::<u64>(&memory, info + 32), 0xe0000);
        assert_eq!(read::<u32>(&memory, info + 48), 3);
        let module = read::<u64>(&memory, info + 16);
        assert_eq!(read::<u64>(&memory, module), 0x180_0000);
        assert_eq!(read::<u64>(&memory, module + 8), 0x1234);
        let entries = read::<u64>(&memory, info + 40);
        assert_eq!(read::<u64>(&memory, entries + 2 * 24), layout::KERNEL_MIN);
        assert_eq!(read::<u32>(&memory, entries + 24 + 16), 2);
    }
}
