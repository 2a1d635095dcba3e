//! What several policies name.

/// Requests to KVM (`<linux/kvm.h>`).
pub(super) const KVM_RUN: u32 = 0xae80;
pub(super) const KVM_IRQ_LINE: u32 = 0x4008_ae61;
pub(super) const KVM_GET_REGS: u32 = 0x8090_ae81;
pub(super) const KVM_GET_SREGS: u32 = 0x8138_ae83;
pub(super) const KVM_KVMCLOCK_CTRL: u32 = 0xaead;
