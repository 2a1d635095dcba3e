//! The ACPI tables of a machine: a hardware-reduced platform without PCI.
//!
//! *Advanced Configuration and Power Interface 6.5*. What is there: processors and the IOAPIC
//! (MADT), virtio-mmio devices, COM1, pvpanic, a power button behind a generic event device, power
//! off (S5) and reset. What is not there is said to be absent (VGA, keyboard controller, CMOS
//! clock), so that kernels do not look for it: every look costs an exit.

mod dsdt;
mod tables;

use vm_memory::GuestMemoryBackend;

use super::boot::{cmdline::MmioWindow, write};
use super::error::MachineError;
use super::layout;

pub use tables::SLEEP_TYPE_S5;

/// What the tables describe.
#[derive(Debug, Clone, Default)]
pub struct AcpiConfig {
    /// Number of processors, 1 to 64; their APIC identifiers count from 0.
    pub vcpus: u8,
    /// Whether there is a COM1.
    pub serial: bool,
    /// The virtio-mmio devices, in their order.
    pub virtio: Vec<MmioWindow>,
}

/// Builds all tables for the place they will have.
///
/// The RSDP comes first. All inner addresses are absolute.
pub fn tables(config: &AcpiConfig, address: u64) -> Vec<u8> {
    let mut area = vec![0u8; tables::RSDP_ROOM];
    let mut place = |table: Vec<u8>| -> u64 {
        area.resize(area.len().next_multiple_of(8), 0);
        let at = address + area.len() as u64;
        area.extend_from_slice(&table);
        at
    };
    let dsdt = place(dsdt::dsdt(config));
    let fadt = place(tables::fadt(dsdt));
    let madt = place(tables::madt(config.vcpus));
    let xsdt = place(tables::xsdt(&[fadt, madt]));
    let rsdp = tables::rsdp(xsdt);
    for (slot, byte) in area.iter_mut().zip(rsdp) {
        *slot = byte;
    }
    area
}

/// Writes all tables to guest memory and returns the RSDP's address.
///
/// # Errors
/// They are larger than their room, or it lies outside guest memory.
pub fn write_tables<M: GuestMemoryBackend>(
    memory: &M,
    config: &AcpiConfig,
) -> Result<u64, MachineError> {
    let tables = tables(config, layout::ACPI_TABLES);
    let needed = tables.len() as u64;
    if needed > layout::ACPI_TABLES_ROOM {
        return Err(MachineError::TableTooLarge {
            what: "ACPI tables",
            needed,
            room: layout::ACPI_TABLES_ROOM,
        });
    }
    write(memory, "ACPI tables", layout::ACPI_TABLES, &tables)?;
    Ok(layout::ACPI_TABLES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xe0000;

    fn config(vcpus: u8, devices: u32) -> AcpiConfig {
        AcpiConfig {
            vcpus,
            serial: true,
            virtio: (0..devices)
                .map(|i| MmioWindow {
                    address: 0xd000_0000 + u64::from(i) * 0x1000,
                    size: 0x1000,
                    irq: 5 + i,
                })
                .collect(),
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |a, b| a.wrapping_add(*b))
    }

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn table(area: &[u8], address: u64) -> &[u8] {
        let at = (address - BASE) as usize;
        let len = u32_at(area, at + 4) as usize;
        &area[at..at + len]
    }

    #[test]
    fn every_table_is_reachable_from_the_rsdp_and_sums_to_zero() {
        let area = tables(&config(64, 20), BASE);

        assert_eq!(&area[..8], b"RSD PTR ");
        assert_eq!(sum(&area[..20]), 0);
        assert_eq!(sum(&area[..36]), 0);
        let xsdt = table(&area, u64_at(&area, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        assert_eq!(sum(xsdt), 0);
        let mut found = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let t = table(&area, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(t), 0, "{:?}", std::str::from_utf8(&t[..4]));
            found.push(t[..4].to_vec());
            if &t[..4] == b"FACP" {
                let dsdt = table(&area, u64_at(t, 140));
                assert_eq!(&dsdt[..4], b"DSDT");
                assert_eq!(sum(dsdt), 0);
            }
        }
        assert_eq!(found, [b"FACP".to_vec(), b"APIC".to_vec()]);
    }

    #[test]
    fn largest_machine_fits_its_room() {
        assert!(tables(&config(64, 20), BASE).len() as u64 <= layout::ACPI_TABLES_ROOM);
    }

    #[test]
    fn fadt_says_what_is_absent_so_that_kernels_do_not_look() {
        let area = tables(&config(1, 0), BASE);
        let xsdt = table(&area, u64_at(&area, 24));
        let fadt = table(&area, u64_at(xsdt, 36));
        let boot_architecture = u16::from_le_bytes([fadt[109], fadt[110]]);
        let flags = u32_at(fadt, 112);

        const NO_VGA: u16 = 1 << 2;
        const NO_CMOS_CLOCK: u16 = 1 << 5;
        const KEYBOARD_CONTROLLER: u16 = 1 << 1;
        assert_eq!(
            boot_architecture & (NO_VGA | NO_CMOS_CLOCK),
            NO_VGA | NO_CMOS_CLOCK
        );
        assert_eq!(boot_architecture & KEYBOARD_CONTROLLER, 0);
        assert_ne!(flags & (1 << 20), 0, "hardware-reduced");
        assert_ne!(flags & (1 << 10), 0, "reset register");
    }

    #[test]
    fn madt_lists_each_processor_once() {
        let area = tables(&config(3, 0), BASE);
        let xsdt = table(&area, u64_at(&area, 24));
        let madt = table(&area, u64_at(xsdt, 44));

        let mut ids = Vec::new();
        let mut rest = &madt[44..];
        while let [kind, len, ..] = *rest {
            if kind == 0 {
                ids.push(rest[3]);
            }
            rest = &rest[usize::from(len)..];
        }
        assert_eq!(ids, [0, 1, 2]);
    }
}
