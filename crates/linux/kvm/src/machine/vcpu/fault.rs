//! What to tell of a vCPU that KVM gave up on.

use kvm_ioctls::VcpuFd;

use crate::machine::end::VcpuFault;

/// Sub-errors of `KVM_EXIT_INTERNAL_ERROR` (Documentation/virt/kvm/api.rst).
fn internal_error(suberror: u32) -> &'static str {
    match suberror {
        1 => "KVM could not emulate an instruction",
        2 => "an exception hit while another one was being delivered, in a way KVM cannot handle",
        3 => "an event could not be delivered",
        4 => "an unexpected exit from the processor",
        _ => "an unknown internal error",
    }
}

/// Bytes of `kvm_run.internal.data` that are worth showing, in words.
const DATA_WORDS: usize = 4;

/// Describes `KVM_EXIT_INTERNAL_ERROR` from the vCPU's shared page.
pub fn describe_internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    // SAFETY: the kernel filled this member, as the exit reason says; all its bit patterns are valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let known = (internal.ndata as usize).min(DATA_WORDS);
    let data: Vec<String> = internal
        .data
        .iter()
        .take(known)
        .map(|word| format!("{word:#x}"))
        .collect();
    format!(
        "{} (KVM_EXIT_INTERNAL_ERROR, sub-error {}, data [{}])",
        internal_error(internal.suberror),
        internal.suberror,
        data.join(", ")
    )
}

/// Puts together what is known, registers included.
pub fn fault(vcpu: &VcpuFd, index: u32, reason: String) -> VcpuFault {
    VcpuFault {
        vcpu: index,
        reason,
        registers: registers(vcpu),
    }
}

fn registers(vcpu: &VcpuFd) -> String {
    let general = match vcpu.get_regs() {
        Ok(r) => format!(
            "rip={:016x} rflags={:x}\n\
             rax={:016x} rbx={:016x} rcx={:016x} rdx={:016x}\n\
             rsi={:016x} rdi={:016x} rbp={:016x} rsp={:016x}\n\
             r8 ={:016x} r9 ={:016x} r10={:016x} r11={:016x}\n\
             r12={:016x} r13={:016x} r14={:016x} r15={:016x}",
            r.rip,
            r.rflags,
            r.rax,
            r.rbx,
            r.rcx,
            r.rdx,
            r.rsi,
            r.rdi,
            r.rbp,
            r.rsp,
            r.r8,
            r.r9,
            r.r10,
            r.r11,
            r.r12,
            r.r13,
            r.r14,
            r.r15
        ),
        Err(e) => format!("general registers are not readable: {e}"),
    };
    let special = match vcpu.get_sregs() {
        Ok(s) => format!(
            "cr0={:x} cr2={:x} cr3={:x} cr4={:x} efer={:x} cs={:x}:{:x} l={} ss={:x} tr={:x}",
            s.cr0,
            s.cr2,
            s.cr3,
            s.cr4,
            s.efer,
            s.cs.selector,
            s.cs.base,
            s.cs.l,
            s.ss.selector,
            s.tr.selector
        ),
        Err(e) => format!("control registers are not readable: {e}"),
    };
    format!("{general}\n{special}")
}
