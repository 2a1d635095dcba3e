//! Model-specific registers that a firmware would have set.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::machine::error::MachineError;

const MISC_ENABLE: u32 = 0x1a0;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// Fast string operations.
const MISC_ENABLE_FAST_STRINGS: u64 = 1;
/// Memory type range registers on, everything write-back.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Sets the registers.
///
/// # Errors
/// [`MachineError::RegisterRefused`] names the one KVM did not take.
pub fn set(vcpu: &VcpuFd) -> Result<(), MachineError> {
    let wanted = [
        (MTRR_DEFAULT_TYPE, MTRR_ENABLE_WRITE_BACK),
        (MISC_ENABLE, MISC_ENABLE_FAST_STRINGS),
    ];
    let entries = wanted.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let msrs = Msrs::from_entries(&entries).map_err(|_| MachineError::KvmUnusable {
        reason: "its register list cannot be built".to_owned(),
    })?;
    // The return value counts those that were set, in order; the next one is the culprit.
    let set = vcpu
        .set_msrs(&msrs)
        .map_err(MachineError::kvm("set the registers of a vCPU"))?;
    match wanted.get(set) {
        None => Ok(()),
        Some((register, value)) => Err(MachineError::RegisterRefused {
            register: *register,
            value: *value,
        }),
    }
}
