//! RSDP, XSDT, FADT and MADT.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::machine::devices::power;
use crate::machine::layout;

pub(super) const OEM_ID: [u8; 6] = *b"CAPSA ";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"CAPSAVM ";
pub(super) const OEM_REVISION: u32 = 1;

/// The RSDP's 36 bytes, rounded up to the alignment of what follows.
pub(super) const RSDP_ROOM: usize = 40;
/// The sleep type that means "off"; `\_S5` names it, the sleep control register takes it.
pub const SLEEP_TYPE_S5: u8 = 5;

/// IAPC_BOOT_ARCH, §5.2.9.3: no VGA, no CMOS clock; and by absence of their bits, no legacy devices
/// and no keyboard controller.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

pub(super) fn rsdp(xsdt: u64) -> Vec<u8> {
    bytes(&Rsdp::new(OEM_ID, xsdt))
}

pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    for table in tables {
        xsdt.add_entry(*table);
    }
    bytes(&xsdt)
}

pub(super) fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |offset: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(layout::POWER_PORT + offset),
        )
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    bytes(&fadt.finalize())
}

pub(super) fn madt(vcpus: u8) -> Vec<u8> {
    let mut madt = MADT::new(
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC_ADDRESS),
    );
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, layout::IOAPIC_ADDRESS, 0));
    bytes(&madt)
}
