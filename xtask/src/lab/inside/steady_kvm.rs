//! A virtual machine that never runs, and is there as long as the lab is.
//!
//! While there is one, and a vCPU whose local APIC is off, the kernel leaves the static keys of the scheduler and of
//! KVM's interrupt code on (`preempt_notifier_key`, `apic_sw_disabled`). Else each machine of a test that begins or ends
//! alone would have it patch its own code, by a breakpoint for the time between. QEMU's software processors do not keep
//! code apart from its translation when another one patches it: one of them can go on meeting a breakpoint that is long
//! gone, for ever, and the lab stands still (seen: both in `asm_exc_int3`, from `__schedule`).

use anyhow::{Context, Result};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Keeps its descriptors.
pub(super) struct SteadyMachine {
    _vcpu: VcpuFd,
    _machine: VmFd,
}

impl SteadyMachine {
    pub(super) fn make() -> Result<Self> {
        let machine = Kvm::new()
            .and_then(|kvm| kvm.create_vm())
            .context("cannot make a machine on the lab's KVM")?;
        machine
            .create_irq_chip()
            .context("cannot give a machine its interrupt controllers")?;
        let vcpu = machine
            .create_vcpu(0)
            .context("cannot give a machine its vCPU")?;
        Ok(Self {
            _vcpu: vcpu,
            _machine: machine,
        })
    }
}
