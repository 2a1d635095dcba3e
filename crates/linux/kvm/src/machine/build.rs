//! From configuration and descriptors to a machine that is ready to run.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_cpuid_entry2,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::acpi::{self, AcpiConfig};
use super::boot::{self, Entry, cmdline, initrd, mptable, pvh, tables, zero_page};
use super::config::{DeviceDiscovery, MachineConfig};
use super::error::{ConfigError, MachineError};
use super::layout;
use super::memory::{Ram, check_size};
use super::vcpu::cpuid::{self, Processors};
use super::vcpu::{msrs, regs};
use super::virtio_mount;

/// What this monitor cannot do without.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::Irqchip, "an interrupt controller in the kernel"),
    (Cap::Pit2, "a timer chip in the kernel"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::UserMemory, "user memory regions"),
    (Cap::SetTssAddr, "a movable task state segment"),
    (Cap::ExtCpuid, "CPUID tables"),
    (Cap::ImmediateExit, "immediate_exit"),
    (Cap::MpState, "processor states"),
];

/// KVM on this host: checked for what the monitor needs.
pub(super) struct Host {
    kvm: Kvm,
    cpuid: Vec<kvm_cpuid_entry2>,
}

impl Host {
    pub(super) fn new(kvm: OwnedFd) -> Result<Self, MachineError> {
        // SAFETY: the descriptor is open and ours alone, given up by `into_raw_fd`.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION as i32 {
            let reason = if version < 0 {
                "the descriptor is not /dev/kvm".to_owned()
            } else {
                format!("it speaks API version {version}, this monitor {KVM_API_VERSION}")
            };
            return Err(MachineError::KvmUnusable { reason });
        }
        if let Some((_, what)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(MachineError::KvmUnusable {
                reason: format!("it lacks {what}"),
            });
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(MachineError::kvm("tell what processors it supports"))?
            .as_slice()
            .to_vec();
        Ok(Self { kvm, cpuid })
    }

    /// Checks the configuration against this host.
    pub(super) fn check(&self, config: &MachineConfig) -> Result<(), ConfigError> {
        config.check()?;
        let max = u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX);
        if config.vcpus > max {
            return Err(ConfigError::Vcpus {
                got: config.vcpus,
                max,
            });
        }
        check_size(config.memory, cpuid::address_bits(&self.cpuid))
    }

    /// Creates the virtual machine with interrupt controllers, timer and memory.
    pub(super) fn create_vm(&self, ram: &Ram) -> Result<VmFd, MachineError> {
        let vm = self
            .kvm
            .create_vm()
            .map_err(MachineError::kvm("create a virtual machine"))?;
        // Both are for Intel hosts, must come before any vCPU, and do no harm elsewhere.
        vm.set_identity_map_address(layout::IDENTITY_MAP_ADDRESS)
            .map_err(MachineError::kvm("set the identity map address"))?;
        vm.set_tss_address(layout::TSS_ADDRESS)
            .map_err(MachineError::kvm("set the task state segment address"))?;
        vm.create_irq_chip()
            .map_err(MachineError::kvm("create interrupt controllers"))?;
        vm.create_pit2(kvm_pit_config {
            // Answers at port 0x61 as well, so that no exit comes from there.
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        })
        .map_err(MachineError::kvm("create a timer chip"))?;
        for (slot, (start, len, host)) in (0u32..).zip(ram.regions()) {
            let region = kvm_userspace_memory_region {
                slot,
                guest_phys_addr: start,
                memory_size: len,
                userspace_addr: host,
                flags: 0,
            };
            // SAFETY: the region is mapped, of this length, and stays so for longer than the
            // virtual machine: `Machine` holds both and drops the memory last.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(MachineError::kvm("give memory to a virtual machine"))?;
        }
        Ok(vm)
    }

    /// Creates all vCPUs; the first one is set up to enter the kernel at `entry`, the others wait
    /// to be started by it.
    pub(super) fn create_vcpus(
        &self,
        vm: &VmFd,
        count: u8,
        entry: Entry,
    ) -> Result<Vec<VcpuFd>, MachineError> {
        let processors = Processors {
            count,
            tsc_deadline: vm.check_extension(Cap::TscDeadlineTimer),
        };
        let mut vcpus = Vec::with_capacity(count.into());
        for id in 0..count {
            let vcpu = vm
                .create_vcpu(id.into())
                .map_err(MachineError::kvm("create a vCPU"))?;
            let table = cpuid::table(&self.cpuid, processors, id);
            let table = CpuId::from_entries(&table).map_err(|_| MachineError::KvmUnusable {
                reason: "its processor description is too long".to_owned(),
            })?;
            vcpu.set_cpuid2(&table)
                .map_err(MachineError::kvm("set what a vCPU tells of itself"))?;
            msrs::set(&vcpu)?;
            regs::set_local_interrupts(&vcpu)?;
            if id == 0 {
                regs::set_boot_state(&vcpu, entry)?;
            }
            vcpus.push(vcpu);
        }
        Ok(vcpus)
    }
}

/// Loads kernel, initrd and command line and writes everything that describes the machine to them.
pub(super) fn load<K, I>(
    config: &MachineConfig,
    ram: &Ram,
    kernel: &mut K,
    initrd: Option<&mut I>,
) -> Result<Entry, MachineError>
where
    K: boot::Image,
    I: boot::Image,
{
    let memory = ram.memory();
    let kernel = boot::load_kernel(memory, ram.low_bytes(), kernel)?;
    let initrd = initrd
        .map(|file| initrd::load(memory, &kernel, file))
        .transpose()?;

    let windows = virtio_mount::windows(config.devices.len());
    let discovery = Discovery::choose(config, kernel.finds_acpi_devices);
    let listed = if discovery.command_line {
        &*windows
    } else {
        &[]
    };
    let command_line = cmdline::with_devices(&config.command_line, listed);
    cmdline::write_command_line(memory, &command_line, kernel.command_line_max)?;

    // At most 64, as was checked.
    let vcpus = config.vcpus as u8;
    let rsdp = if discovery.acpi {
        let acpi = AcpiConfig {
            vcpus,
            serial: config.serial,
            virtio: windows,
        };
        Some(acpi::write_tables(memory, &acpi)?)
    } else {
        None
    };
    // Kernels with ACPI do not look at it; those without learn of their processors here.
    mptable::write_tables(memory, vcpus)?;
    tables::write_reset_vector(memory)?;

    let map = layout::memory_map(ram.bytes());
    match kernel.entry {
        Entry::Linux64(_) => {
            tables::write_gdt(memory, tables::CODE64)?;
            tables::write_identity_map(memory, kernel.end)?;
            zero_page::write_zero_page(memory, &kernel, command_line.len(), initrd, &map, rsdp)?;
        }
        Entry::Pvh(_) => {
            tables::write_gdt(memory, tables::CODE32)?;
            pvh::write_start_info(memory, initrd, &map, rsdp)?;
        }
    }
    Ok(kernel.entry)
}

/// By which ways the kernel is told of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Discovery {
    acpi: bool,
    command_line: bool,
}

impl Discovery {
    fn choose(config: &MachineConfig, kernel_finds_acpi: Option<bool>) -> Self {
        match config.discovery {
            DeviceDiscovery::Acpi => Self {
                acpi: true,
                command_line: false,
            },
            DeviceDiscovery::CommandLine => Self {
                acpi: false,
                command_line: true,
            },
            DeviceDiscovery::Auto if cmdline::disables_acpi(&config.command_line) => Self {
                acpi: false,
                command_line: true,
            },
            DeviceDiscovery::Auto => Self {
                acpi: true,
                command_line: kernel_finds_acpi == Some(false),
            },
        }
    }
}
