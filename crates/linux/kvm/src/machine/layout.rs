//! The guest-physical address map.
//!
//! RAM starts at 0 and is split around the 32-bit gap: what does not fit below
//! [`LOW_MEMORY_LIMIT`] continues at [`HIGH_MEMORY_START`]. Everything the monitor itself places
//! in guest memory lies below 1 MiB, where a kernel never loads.

/// First address that is not RAM below 4 GiB: device windows, the IOAPIC and the local APIC follow.
pub const LOW_MEMORY_LIMIT: u64 = 3 << 30;
/// Where the RAM continues that did not fit below [`LOW_MEMORY_LIMIT`].
pub const HIGH_MEMORY_START: u64 = 4 << 30;

/// First virtio-mmio register window.
pub const VIRTIO_MMIO_BASE: u64 = 0xd000_0000;
/// Distance between two virtio-mmio windows: a page each, so that one can be mapped by itself.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;

/// The IOAPIC that KVM emulates (24 pins).
pub const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// The local APIC's reset address.
pub const LOCAL_APIC_ADDRESS: u32 = 0xfee0_0000;
/// Page that Intel hosts need to run real-mode guests (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
/// Three pages that Intel hosts need for the same (`KVM_SET_TSS_ADDR`).
pub const TSS_ADDRESS: usize = 0xfffb_d000;

/// The global descriptor table the boot processor starts with.
pub const GDT_ADDRESS: u64 = 0x500;
/// `hvm_start_info` (PVH entry).
pub const PVH_START_INFO: u64 = 0x6000;
/// The PVH module list: one entry, the initrd.
pub const PVH_MODULES: u64 = 0x6040;
/// The PVH memory map.
pub const PVH_MEMORY_MAP: u64 = 0x6100;
/// `boot_params` (Linux 64-bit entry).
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of the first instructions, grows down.
pub const BOOT_STACK_TOP: u64 = 0x8ff0;
/// Top-level page table; the pointer table and the page directories follow page by page.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line with its final NUL.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for the command line, its NUL included. Far above the limit of any kernel (2048).
pub const COMMAND_LINE_ROOM: u64 = 0x1_0000;
/// End of the memory that guests may use below 1 MiB (what a BIOS would report as base memory).
pub const BASE_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables, the RSDP first: guests look for it here on 16-byte boundaries.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Room for the ACPI tables.
pub const ACPI_TABLES_ROOM: u64 = 0x1_0000;
/// Multiprocessor Specification tables: guests look for the pointer here.
pub const MP_TABLE: u64 = 0xf_0000;
/// Room for the MP tables.
pub const MP_TABLE_ROOM: u64 = 0xfff0;
/// Where a real-mode program jumps to reset a PC.
pub const RESET_VECTOR: u64 = 0xf_fff0;
/// Lowest address a kernel may occupy.
pub const KERNEL_MIN: u64 = 0x10_0000;

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// Where the pvpanic device is by convention.
pub const PVPANIC_PORT: u16 = 0x505;
/// The power block: sleep control, sleep status, reset and power-button status, a byte each.
pub const POWER_PORT: u16 = 0x600;
/// The generic event device's interrupt.
pub const POWER_IRQ: u32 = 9;

/// IOAPIC pins that virtio-mmio devices may have, in the order they are given out. Left out are
/// the timer (0, 2), COM1 (4) and the generic event device (9); those that a PC gives to a
/// keyboard, a clock or a coprocessor come last.
pub const VIRTIO_IRQS: [u32; 20] = [
    5, 6, 7, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23, 3, 12, 14, 15, 13, 8, 1,
];

/// A stretch of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes, never 0.
    pub size: u64,
}

impl RamRange {
    /// First address behind the range.
    pub fn end(&self) -> u64 {
        self.start + self.size
    }
}

/// Splits `bytes` of RAM around the 32-bit gap.
///
/// The caller has checked that `bytes` is not 0 and far from overflowing (see
/// [`crate::machine::memory::check_size`]).
pub fn ram_ranges(bytes: u64) -> Vec<RamRange> {
    let low = bytes.min(LOW_MEMORY_LIMIT);
    let mut ranges = vec![RamRange {
        start: 0,
        size: low,
    }];
    if bytes > low {
        ranges.push(RamRange {
            start: HIGH_MEMORY_START,
            size: bytes - low,
        });
    }
    ranges
}

/// What a guest may do with a stretch of its address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapKind {
    /// Ordinary memory.
    Ram,
    /// Not to be used: firmware tables.
    Reserved,
}

/// One entry of the memory map a guest is given (e820, PVH).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub size: u64,
    /// Its use.
    pub kind: MapKind,
}

/// The memory map for `bytes` of RAM.
pub fn memory_map(bytes: u64) -> Vec<MapEntry> {
    let ram = |start: u64, end: u64| MapEntry {
        start,
        size: end.saturating_sub(start),
        kind: MapKind::Ram,
    };
    let mut map = Vec::with_capacity(4);
    for range in ram_ranges(bytes) {
        if range.start == 0 {
            map.push(ram(0, BASE_MEMORY_END.min(range.end())));
            if range.end() > KERNEL_MIN {
                map.push(MapEntry {
                    start: BASE_MEMORY_END,
                    size: KERNEL_MIN - BASE_MEMORY_END,
                    kind: MapKind::Reserved,
                });
                map.push(ram(KERNEL_MIN, range.end()));
            }
        } else {
            map.push(ram(range.start, range.end()));
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usable(map: &[MapEntry]) -> u64 {
        map.iter()
            .filter(|e| e.kind == MapKind::Ram)
            .map(|e| e.size)
            .sum()
    }

    #[test]
    fn ram_below_the_gap_is_one_range() {
        let ranges = ram_ranges(32 << 20);

        assert_eq!(
            ranges,
            [RamRange {
                start: 0,
                size: 32 << 20
            }]
        );
    }

    #[test]
    fn ram_of_exactly_the_low_limit_has_no_high_range() {
        assert_eq!(ram_ranges(LOW_MEMORY_LIMIT).len(), 1);
    }

    #[test]
    fn ram_beyond_the_gap_continues_at_4_gib_without_losing_a_byte() {
        let ranges = ram_ranges(5 << 30);

        assert_eq!(ranges.len(), 2);
        assert_eq!(ranges[0].end(), LOW_MEMORY_LIMIT);
        assert_eq!(ranges[1].start, HIGH_MEMORY_START);
        assert_eq!(ranges[0].size + ranges[1].size, 5 << 30);
    }

    #[test]
    fn memory_map_hides_only_the_firmware_area() {
        for bytes in [32 << 20, 3 << 30, 5 << 30] {
            let map = memory_map(bytes);

            assert_eq!(usable(&map), bytes - (KERNEL_MIN - BASE_MEMORY_END));
        }
    }

    #[test]
    fn memory_map_is_sorted_and_does_not_overlap() {
        let map = memory_map(5 << 30);

        for pair in map.windows(2) {
            assert!(pair[0].start + pair[0].size <= pair[1].start, "{pair:?}");
        }
    }

    #[test]
    fn virtio_interrupts_are_distinct_ioapic_pins_nobody_else_has() {
        let mut seen = [false; 24];
        for taken in [0, 2, SERIAL_IRQ, POWER_IRQ] {
            seen[taken as usize] = true;
        }

        for irq in VIRTIO_IRQS {
            assert!(!std::mem::replace(&mut seen[irq as usize], true), "{irq}");
        }
    }

    #[test]
    fn boot_structures_do_not_overlap() {
        let areas = [
            (GDT_ADDRESS, 0x30),
            (PVH_START_INFO, 56),
            (PVH_MODULES, 32),
            (PVH_MEMORY_MAP, 24 * 8),
            (ZERO_PAGE, 0x1000),
            (BOOT_STACK_TOP - 0xff0, 0xff0),
            (PAGE_TABLES, 5 * 0x1000),
            (COMMAND_LINE, COMMAND_LINE_ROOM),
            (ACPI_TABLES, ACPI_TABLES_ROOM),
            (MP_TABLE, MP_TABLE_ROOM),
            (RESET_VECTOR, 0x10),
        ];

        for pair in areas.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:x?}");
        }
    }
}
