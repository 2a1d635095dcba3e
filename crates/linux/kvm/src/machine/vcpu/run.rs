//! The loop of a vCPU thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::fault;
use crate::machine::control::{Control, Phase, VcpuThread};
use crate::machine::devices::bus::PortBus;
use crate::machine::devices::serial::Serial;
use crate::machine::end::MachineEnd;
use crate::machine::virtio_mount::VirtioWindows;

/// Everything a vCPU reaches by leaving the guest.
pub struct Devices {
    /// The I/O ports.
    pub ports: PortBus,
    /// The virtio-mmio windows.
    pub virtio: VirtioWindows,
    /// The serial port, for its back pressure.
    pub serial: Option<Arc<Serial>>,
}

/// How often a vCPU left the guest, by cause.
#[derive(Debug, Default)]
pub struct ExitCounts {
    /// Reads from I/O ports.
    pub port_reads: AtomicU64,
    /// Writes to I/O ports.
    pub port_writes: AtomicU64,
    /// Reads from device registers in memory.
    pub mmio_reads: AtomicU64,
    /// Writes to them.
    pub mmio_writes: AtomicU64,
    /// Everything else: signals, ends, faults.
    pub other: AtomicU64,
}

impl ExitCounts {
    /// Reads and writes of ports, reads and writes of memory, everything else.
    pub fn get(&self) -> [u64; 5] {
        [
            &self.port_reads,
            &self.port_writes,
            &self.mmio_reads,
            &self.mmio_writes,
            &self.other,
        ]
        .map(|counter| counter.load(Ordering::Relaxed))
    }
}

fn count(counter: &AtomicU64) {
    // One thread writes: a plain addition would do, but for readers.
    counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A vCPU with what its thread needs.
pub struct Vcpu {
    /// Its number and APIC identifier.
    pub index: u32,
    /// KVM's handle.
    pub fd: VcpuFd,
    /// The machine's phases.
    pub control: Arc<Control>,
    /// The devices.
    pub devices: Arc<Devices>,
    /// Counters, shared with who wants to read them.
    pub exits: Arc<ExitCounts>,
}

enum After {
    /// Enter the guest again.
    Enter,
    /// Look at the machine's phase first.
    Check,
    /// The same; the guest was left between two instructions.
    Interrupted,
}

impl Vcpu {
    /// Runs until the machine ends. This is the whole life of a vCPU thread.
    pub fn run(mut self) {
        let control = Arc::clone(&self.control);
        if let Err(error) = self.run_until_end(&control) {
            let reason = format!("its thread cannot be set up: {error}");
            self.fail(reason);
        }
    }

    fn run_until_end(&mut self, control: &Control) -> io::Result<()> {
        let flag = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the flag is that of the vCPU which only this thread runs; it is mapped as long as
        // `self.fd` lives, and the guard is dropped at the end of this function.
        let _thread = unsafe { VcpuThread::enter(control, flag) }?;
        let mut entered = false;
        loop {
            match control.phase() {
                Phase::Running => entered = true,
                Phase::Held => {
                    if entered {
                        self.complete_exit(control);
                    }
                    control.park();
                    // Tells the guest that it was held, so that its watchdogs forgive the time.
                    // Guests without kvmclock have nothing to be told.
                    let _ = self.fd.kvmclock_ctrl();
                    continue;
                }
                Phase::Ended => return Ok(()),
            }
            if let Some(serial) = self.over_full_serial() {
                serial.wait_for_room(control);
                continue;
            }
            while let After::Enter = self.enter() {}
        }
    }

    /// Finishes the instruction that caused the last exit: KVM does so at the next entry only.
    fn complete_exit(&mut self, control: &Control) {
        self.fd.set_kvm_immediate_exit(1);
        while control.phase() != Phase::Ended {
            if let After::Interrupted = self.enter() {
                return;
            }
        }
    }

    fn over_full_serial(&self) -> Option<&Serial> {
        self.devices.serial.as_deref().filter(|s| s.is_over_full())
    }

    /// Runs the guest until its next exit, and handles that.
    fn enter(&mut self) -> After {
        let exits = &self.exits;
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(&exits.port_writes);
                tracing::trace!(port, ?data, "port write");
                self.devices.ports.write(port, data);
                // A write can end the machine or fill a console.
                After::Check
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(&exits.port_reads);
                self.devices.ports.read(port, data);
                tracing::trace!(port, ?data, "port read");
                After::Enter
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(&exits.mmio_reads);
                self.devices.virtio.read(address, data);
                tracing::trace!(address, ?data, "memory read");
                After::Enter
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(&exits.mmio_writes);
                tracing::trace!(address, ?data, "memory write");
                self.devices.virtio.write(address, data);
                After::Enter
            }
            Ok(VcpuExit::Shutdown) => self.end(MachineEnd::TripleFault),
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                let end = match kind {
                    KVM_SYSTEM_EVENT_SHUTDOWN => MachineEnd::PoweredOff,
                    KVM_SYSTEM_EVENT_RESET => MachineEnd::Reset,
                    KVM_SYSTEM_EVENT_CRASH => MachineEnd::GuestPanic { message: None },
                    kind => return self.fail(format!("unknown system event {kind} from KVM")),
                };
                self.end(end)
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => self.fail(format!(
                "the processor refused to enter the guest \
                 (KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x}, host processor {cpu})"
            )),
            Ok(VcpuExit::InternalError) => {
                let reason = fault::describe_internal_error(&mut self.fd);
                self.fail(reason)
            }
            Ok(VcpuExit::MemoryFault { flags, gpa, size }) => self.fail(format!(
                "the guest's memory at {gpa:#x} ({size:#x} bytes) is not there \
                 (KVM_EXIT_MEMORY_FAULT, flags {flags:#x})"
            )),
            Ok(VcpuExit::Intr) => {
                count(&exits.other);
                After::Check
            }
            // With KVM's own interrupt controller a halted vCPU waits inside KVM, and none of the
            // others was asked for.
            Ok(exit) => {
                let reason = format!("unexpected exit from KVM: {exit:?}");
                self.fail(reason)
            }
            Err(e) if e.errno() == libc::EINTR => {
                count(&exits.other);
                self.fd.set_kvm_immediate_exit(0);
                After::Interrupted
            }
            // A vCPU that waits to be started was woken for another reason.
            Err(e) if e.errno() == libc::EAGAIN => After::Check,
            Err(e) => self.fail(format!("KVM_RUN failed: {e}")),
        }
    }

    fn end(&self, end: MachineEnd) -> After {
        count(&self.exits.other);
        self.control.end(end);
        After::Check
    }

    fn fail(&self, reason: String) -> After {
        tracing::error!(vcpu = self.index, reason, "a vCPU failed");
        self.end(MachineEnd::Fault(fault::fault(
            &self.fd, self.index, reason,
        )))
    }
}
