//! The state in which the boot processor enters its kernel.

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::machine::boot::Entry;
use crate::machine::boot::tables::GDT_LEN;
use crate::machine::error::MachineError;
use crate::machine::layout;

const CR0_PROTECTION: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
const EFER_LONG_MODE: u64 = 1 << 8 | 1 << 10;
/// Bit 1 is always set.
const FLAGS: u64 = 2;
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// Offset and mode of the local APIC's two local interrupt pins.
const LAPIC_LINT0: usize = 0x350;
const LAPIC_LINT1: usize = 0x360;
const DELIVERY_MASK: u32 = 7 << 8 | 1 << 16;
const DELIVERY_NMI: u32 = 4 << 8;
const DELIVERY_EXTERNAL: u32 = 7 << 8;

/// Sets general, segment and control registers for `entry`.
///
/// # Errors
/// KVM refuses them.
pub fn set_boot_state(vcpu: &VcpuFd, entry: Entry) -> Result<(), MachineError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(MachineError::kvm("read the segment registers of a vCPU"))?;
    enter_mode(&mut sregs, entry);
    vcpu.set_sregs(&sregs)
        .map_err(MachineError::kvm("set the segment registers of a vCPU"))?;
    vcpu.set_regs(&general(entry))
        .map_err(MachineError::kvm("set the registers of a vCPU"))?;
    // As after FNINIT, and with all SSE exceptions masked.
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(MachineError::kvm("set the FPU state of a vCPU"))
}

fn general(entry: Entry) -> kvm_regs {
    let common = kvm_regs {
        rflags: FLAGS,
        rsp: layout::BOOT_STACK_TOP,
        rbp: layout::BOOT_STACK_TOP,
        ..Default::default()
    };
    match entry {
        Entry::Linux64(rip) => kvm_regs {
            rip,
            rsi: layout::ZERO_PAGE,
            ..common
        },
        Entry::Pvh(rip) => kvm_regs {
            rip,
            rbx: layout::PVH_START_INFO,
            ..common
        },
    }
}

fn enter_mode(sregs: &mut kvm_sregs, entry: Entry) {
    let long = matches!(entry, Entry::Linux64(_));
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let code = kvm_segment {
        selector: CODE_SELECTOR,
        type_: 0xb,
        l: long.into(),
        db: (!long).into(),
        ..flat
    };
    let data = kvm_segment {
        selector: DATA_SELECTOR,
        type_: 3,
        db: 1,
        ..flat
    };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        selector: TASK_SELECTOR,
        limit: 0x67,
        type_: 0xb,
        present: 1,
        ..Default::default()
    };
    sregs.gdt.base = layout::GDT_ADDRESS;
    sregs.gdt.limit = GDT_LEN - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PROTECTION | CR0_EXTENSION_TYPE;
    sregs.cr4 = 0;
    sregs.efer = 0;
    if long {
        sregs.cr0 |= CR0_PAGING;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = CR4_PHYSICAL_ADDRESS_EXTENSION;
        sregs.efer = EFER_LONG_MODE;
    }
}

/// Wires the local APIC's pins as a PC does: LINT0 to the interrupt controller, LINT1 to NMI.
///
/// # Errors
/// KVM refuses.
pub fn set_local_interrupts(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let mut lapic = vcpu
        .get_lapic()
        .map_err(MachineError::kvm("read the local APIC of a vCPU"))?;
    for (offset, mode) in [
        (LAPIC_LINT0, DELIVERY_EXTERNAL),
        (LAPIC_LINT1, DELIVERY_NMI),
    ] {
        if let Some(bytes) = lapic.regs.get_mut(offset..offset + 4) {
            let mut value = 0u32;
            for (i, byte) in bytes.iter().enumerate() {
                value |= u32::from(*byte as u8) << (8 * i);
            }
            let value = value & !DELIVERY_MASK | mode;
            for (slot, byte) in bytes.iter_mut().zip(value.to_le_bytes()) {
                *slot = byte as _;
            }
        }
    }
    vcpu.set_lapic(&lapic)
        .map_err(MachineError::kvm("set the local APIC of a vCPU"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_entry_is_in_long_mode_with_the_zero_page_in_rsi() {
        let mut sregs = kvm_sregs::default();

        enter_mode(&mut sregs, Entry::Linux64(0x100_0200));
        let regs = general(Entry::Linux64(0x100_0200));

        assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
        assert_ne!(sregs.efer & (1 << 10), 0);
        assert_eq!(sregs.cr3, layout::PAGE_TABLES);
        assert_eq!((regs.rip, regs.rsi), (0x100_0200, layout::ZERO_PAGE));
    }

    #[test]
    fn pvh_entry_is_in_protected_mode_with_start_info_in_ebx() {
        let mut sregs = kvm_sregs::default();

        enter_mode(&mut sregs, Entry::Pvh(0x100_0000));
        let regs = general(Entry::Pvh(0x100_0000));

        assert_eq!((sregs.cs.l, sregs.cs.db), (0, 1));
        assert_eq!((sregs.efer, sregs.cr4), (0, 0));
        assert_eq!(sregs.cr0 & CR0_PAGING, 0);
        assert_eq!((regs.rip, regs.rbx), (0x100_0000, layout::PVH_START_INFO));
    }
}
