//! The DSDT: the devices of the machine in AML.

use acpi_tables::aml::{
    And, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, OpRegion,
    OpRegionSpace, Package, Path, ResourceTemplate, Store, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::AcpiConfig;
use super::tables::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, SLEEP_TYPE_S5};
use crate::machine::boot::cmdline::MmioWindow;
use crate::machine::devices::power;
use crate::machine::layout;

const REVISION: u8 = 2;
const HEADER_LEN: u32 = 36;
/// Present, enabled, functioning, but not shown to users.
const STATUS_HIDDEN: u8 = 0xb;
const STATUS_SHOWN: u8 = 0xf;
/// Notification of a power button: pressed, the machine being on.
const BUTTON_PRESSED: u8 = 0x80;

pub(super) fn dsdt(config: &AcpiConfig) -> Vec<u8> {
    let mut body = Vec::new();
    sleep_states().to_aml_bytes(&mut body);
    power_button(&mut body);
    event_device(&mut body);
    pvpanic(&mut body);
    if config.serial {
        serial(&mut body);
    }
    for (index, window) in (0u32..).zip(&config.virtio) {
        virtio(&mut body, index, window);
    }

    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER_LEN,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&body);
    dsdt.as_slice().to_vec()
}

/// `\_S5`: the only sleep state.
fn sleep_states() -> impl Aml {
    Name::new(
        Path::new("\\_S5_"),
        &Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]),
    )
}

fn in_system_bus(sink: &mut dyn AmlSink, name: &str, children: Vec<&dyn Aml>) {
    Device::new(Path::new(&format!("\\_SB_.{name}")), children).to_aml_bytes(sink);
}

fn power_button(sink: &mut dyn AmlSink) {
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0C0C"));
    let status = Name::new(Path::new("_STA"), &STATUS_SHOWN);
    in_system_bus(sink, "PWRB", vec![&id, &status]);
}

/// The generic event device (§5.6.9): one interrupt, behind it the power button's status byte,
/// which reading clears.
fn event_device(sink: &mut dyn AmlSink) {
    let id = Name::new(Path::new("_HID"), &"ACPI0013");
    let unique = Name::new(Path::new("_UID"), &ZERO);
    let interrupt = Interrupt::new(true, true, false, false, layout::POWER_IRQ);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt]));
    let (offset, len) = (layout::POWER_PORT + power::BUTTON_STATUS, 1u8);
    let region = OpRegion::new(Path::new("EVTR"), OpRegionSpace::SystemIO, &offset, &len);
    let field = Field::new(
        Path::new("EVTR"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"ESTS", 8)],
    );
    let (status, pending) = (Path::new("ESTS"), Local(0));
    let read = Store::new(&pending, &status);
    let masked = And::new(&pending, &pending, &power::BUTTON_PRESSED);
    let pressed = Equal::new(&pending, &power::BUTTON_PRESSED);
    let button = Path::new("\\_SB_.PWRB");
    let notify = Notify::new(&button, &BUTTON_PRESSED);
    let tell = If::new(&pressed, vec![&notify]);
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&read, &masked, &tell]);
    in_system_bus(
        sink,
        "GED_",
        vec![&id, &unique, &resources, &region, &field, &event],
    );
}

/// The paravirtual panic device, found by its identifier.
fn pvpanic(sink: &mut dyn AmlSink) {
    let id = Name::new(Path::new("_HID"), &"QEMU0001");
    let status = Name::new(Path::new("_STA"), &STATUS_SHOWN);
    let port = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port]));
    in_system_bus(sink, "PEVT", vec![&id, &status, &resources]);
}

fn serial(sink: &mut dyn AmlSink) {
    let id = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let unique = Name::new(Path::new("_UID"), &ZERO);
    let port = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_IRQ);
    let resources = Name::new(
        Path::new("_CRS"),
        &ResourceTemplate::new(vec![&port, &interrupt]),
    );
    in_system_bus(sink, "COM1", vec![&id, &unique, &resources]);
}

fn virtio(sink: &mut dyn AmlSink, index: u32, window: &MmioWindow) {
    let id = Name::new(Path::new("_HID"), &"LNRO0005");
    let unique = Name::new(Path::new("_UID"), &index);
    let coherent = Name::new(Path::new("_CCA"), &1u8);
    let status = Name::new(Path::new("_STA"), &STATUS_HIDDEN);
    // All windows lie below 4 GiB.
    let registers = Memory32Fixed::new(true, window.address as u32, window.size as u32);
    let interrupt = Interrupt::new(true, true, false, false, window.irq);
    let resources = Name::new(
        Path::new("_CRS"),
        &ResourceTemplate::new(vec![&registers, &interrupt]),
    );
    in_system_bus(
        sink,
        &format!("V{index:03}"),
        vec![&id, &unique, &coherent, &status, &resources],
    );
}
