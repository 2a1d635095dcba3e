//! Whether KVM can be used here: present, permitted, complete, and fast.
//!
//! Some hosts have a `/dev/kvm` that emulates guest kernel mode in software: it answers every call
//! and runs a kernel a thousand times too slowly, until it meets an instruction that it lacks. A
//! loop at the kernel's privilege level tells the two apart.

use std::fs;
use std::path::Path;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use capsa_core::{Availability, Error};
use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuExit};

use crate::host_check;

/// The version that every KVM since Linux 2.6.22 has.
const API_VERSION: i32 = 12;
/// Below this many guest instructions a second KVM is taken for emulated.
const USABLE_SPEED: u64 = 20_000_000;
/// Iterations of the two loops that are compared. The long one takes some 20 ms on an emulated KVM.
const SHORT_LOOP: u32 = 2_000;
const LONG_LOOP: u32 = 20_000;
/// Iterations of the loop that only a fast KVM is given: some milliseconds there.
const CONFIRMING_LOOP: u32 = 1_000_000;
/// Instructions of one iteration.
const PER_ITERATION: u128 = 2;
/// How often a slow measurement is repeated where nothing says that the host emulates: a busy one, itself
/// emulated, can hold up a few in a row.
const ATTEMPTS: usize = 40;
/// The same where a module that emulates is loaded: the first measurements tell the truth.
const ATTEMPTS_WHERE_EMULATED: usize = 4;

/// What the monitor cannot do without.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "guest memory"),
    (Cap::Irqchip, "the interrupt controllers"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::Irqfd, "irqfd"),
    (Cap::Pit2, "the timer"),
    (Cap::ImmediateExit, "immediate exit"),
];

const USE_QEMU: &str = "use a machine with hardware virtualization that this system may use (bare \
                        metal, or a cloud machine with nested virtualization); until then the qemu \
                        backend works";

/// Probes KVM. Takes about a millisecond where it is real, some milliseconds where it is not.
pub(crate) fn probe() -> Availability {
    let descriptor = match host_check::open_kvm() {
        Ok(descriptor) => descriptor,
        Err(Error::BackendUnavailable { reason, fix, .. }) => {
            return if Path::new("/dev/kvm").exists() {
                Availability::unusable(reason, fix)
            } else {
                Availability::absent(reason, fix)
            };
        }
        Err(error) => return Availability::unusable(error.to_string(), USE_QEMU),
    };
    // SAFETY: the descriptor was just opened and belongs to nobody else from here on.
    let kvm = unsafe {
        use std::os::fd::{FromRawFd, IntoRawFd};
        Kvm::from_raw_fd(descriptor.into_raw_fd())
    };
    let version = kvm.get_api_version();
    let mut availability = if version != API_VERSION {
        Availability::unusable(
            format!("/dev/kvm speaks version {version} of its interface instead of {API_VERSION}"),
            "update the kernel",
        )
    } else if let Some((_, missing)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
        Availability::unusable(
            format!("this host's KVM lacks {missing}"),
            "update the kernel",
        )
    } else {
        match speed(&kvm) {
            Ok(speed) => judge(speed, emulation_module()),
            Err(reason) => Availability::unusable(
                format!("KVM is there, but a first guest could not run: {reason}"),
                USE_QEMU,
            ),
        }
    };
    availability.version = Some(format!("API version {version}"));
    availability
}

/// The name of a loaded module that is known to emulate guest kernels.
fn emulation_module() -> Option<&'static str> {
    fs::exists("/sys/module/kvm_pvm")
        .is_ok_and(|there| there)
        .then_some("kvm_pvm")
}

fn attempts() -> usize {
    match emulation_module() {
        Some(_) => ATTEMPTS_WHERE_EMULATED,
        None => ATTEMPTS,
    }
}

fn judge(speed: u64, module: Option<&str>) -> Availability {
    let mut availability = if speed >= USABLE_SPEED {
        Availability::usable(format!(
            "KVM works; guest kernels run at {} million instructions a second or more",
            speed / 1_000_000
        ))
    } else {
        let because = match module {
            Some(module) => format!(" (its module is {module})"),
            None => String::new(),
        };
        Availability::unusable(
            format!(
                "/dev/kvm is there, but this host emulates the kernel's part of a guest in \
                 software{because}: {:.1} million instructions a second, where real hardware \
                 virtualization runs hundreds of millions. A guest kernel would take minutes to \
                 boot, or hang",
                speed as f64 / 1e6
            ),
            USE_QEMU,
        )
    };
    availability.instructions_per_second = Some(speed);
    availability
}

/// How many instructions of a guest's kernel run in a second.
fn speed(kvm: &Kvm) -> Result<u64, String> {
    let estimate = estimate(|iterations| run_loop(kvm, iterations))?;
    if estimate < USABLE_SPEED {
        return Ok(estimate);
    }
    confirm(|iterations| run_loop(kvm, iterations))
}

/// Times a loop that is long enough for it, now that there is time for one. This one may be held up by
/// others just as well.
fn confirm(mut run: impl FnMut(u32) -> Result<Duration, String>) -> Result<u64, String> {
    let mut fastest = 0;
    for _ in 0..attempts() {
        let elapsed = run(CONFIRMING_LOOP)?;
        fastest = fastest.max(instructions_a_second(CONFIRMING_LOOP, elapsed));
        if fastest >= USABLE_SPEED {
            break;
        }
    }
    Ok(fastest)
}

/// From the difference of a long and a short loop: entering and leaving a guest takes long where
/// KVM is nested. On a busy host a loop may be held up by others: the fastest of some counts.
fn estimate(mut run: impl FnMut(u32) -> Result<Duration, String>) -> Result<u64, String> {
    let (mut short, mut long) = (Duration::MAX, Duration::MAX);
    let mut speed = 0;
    for _ in 0..attempts() {
        short = short.min(run(SHORT_LOOP)?);
        long = long.min(run(LONG_LOOP)?);
        speed = instructions_a_second(LONG_LOOP - SHORT_LOOP, long.saturating_sub(short));
        if speed >= USABLE_SPEED {
            break;
        }
    }
    Ok(speed)
}

fn instructions_a_second(iterations: u32, elapsed: Duration) -> u64 {
    let instructions = u128::from(iterations) * PER_ITERATION;
    let nanoseconds = elapsed.as_nanos().max(1);
    u64::try_from(instructions * 1_000_000_000 / nanoseconds).unwrap_or(u64::MAX)
}

const PAGE: usize = 4096;
const PAGES: usize = 4;
/// Where each page of the little guest lies in its memory.
const PML4: u64 = 0;
const PDPT: u64 = PAGE as u64;
const DIRECTORY: u64 = 2 * PAGE as u64;
const CODE: u64 = 3 * PAGE as u64;

/// Runs a countdown from `iterations` at privilege level 0 in long mode, and times it.
fn run_loop(kvm: &Kvm, iterations: u32) -> Result<Duration, String> {
    let failed = |step: &'static str| move |error: kvm_ioctls::Error| format!("{step}: {error}");
    let memory = Memory::new().map_err(|error| format!("no memory for it: {error}"))?;
    memory.write(PML4, &(PDPT | 0b11).to_le_bytes());
    memory.write(PDPT, &(DIRECTORY | 0b11).to_le_bytes());
    // One page of 2 MiB at 0: present, writable, large.
    memory.write(DIRECTORY, &0b1000_0011_u64.to_le_bytes());
    let [a, b, c, d] = iterations.to_le_bytes();
    // mov ecx, iterations; again: dec ecx; jnz again; hlt
    memory.write(CODE, &[0xb9, a, b, c, d, 0xff, 0xc9, 0x75, 0xfc, 0xf4]);
    let vm = kvm.create_vm().map_err(failed("creating it"))?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: (PAGES * PAGE) as u64,
        userspace_addr: memory.address(),
        flags: 0,
    };
    // SAFETY: the memory is mapped, this long, and outlives the VM, which is dropped first.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("giving it memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("giving it a vCPU"))?;
    let mut system = vcpu.get_sregs().map_err(failed("reading its registers"))?;
    system.cr3 = PML4;
    system.cr4 |= 1 << 5; // physical address extension
    system.efer |= 1 << 8 | 1 << 10; // long mode, enabled and active
    system.cr0 |= 1 << 31 | 1; // paging, protected mode
    let flat = kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    for segment in [
        &mut system.ds,
        &mut system.es,
        &mut system.fs,
        &mut system.gs,
        &mut system.ss,
    ] {
        *segment = flat;
    }
    system.cs = kvm_segment {
        selector: 8,
        type_: 11,
        l: 1,
        db: 0,
        ..flat
    };
    vcpu.set_sregs(&system)
        .map_err(failed("setting its mode"))?;
    let mut registers = vcpu.get_regs().map_err(failed("reading its registers"))?;
    registers.rip = CODE;
    registers.rflags = 2;
    vcpu.set_regs(&registers)
        .map_err(failed("setting its registers"))?;
    let start = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::Hlt) => return Ok(start.elapsed()),
            Ok(exit) => return Err(format!("it stopped with {exit:?}")),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {}
            Err(error) => return Err(format!("running it: {error}")),
        }
    }
}

/// The little guest's memory.
struct Memory(NonNull<u8>);

impl Memory {
    fn new() -> std::io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let mapped = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                PAGES * PAGE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }?;
        NonNull::new(mapped.cast())
            .map(Self)
            .ok_or_else(|| std::io::Error::other("the mapping is at address 0"))
    }

    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Writes `bytes` at `offset`. Both are this module's own constants and fit.
    fn write(&self, offset: u64, bytes: &[u8]) {
        let offset = offset as usize;
        assert!(
            offset + bytes.len() <= PAGES * PAGE,
            "the probe's guest outgrew its memory"
        );
        // SAFETY: the range is inside the mapping, as was just seen, and no guest runs yet.
        unsafe {
            self.0
                .as_ptr()
                .add(offset)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this long, and nothing refers to it any more. An error would mean
        // that it is not mapped, which `new` made sure of.
        let _unmapped = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), PAGES * PAGE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_kvm_is_present_and_not_usable_in_words_that_name_the_fix() {
        let availability = judge(1_700_000, Some("kvm_pvm"));
        assert!(availability.present && !availability.usable);
        assert_eq!(availability.instructions_per_second, Some(1_700_000));
        for word in ["kvm_pvm", "1.7 million", "in software"] {
            assert!(
                availability.reason.contains(word),
                "{}",
                availability.reason
            );
        }
        assert!(availability.fix.unwrap().contains("qemu backend"));
    }

    #[test]
    fn entering_and_leaving_the_guest_does_not_count() {
        let speed = estimate(|iterations| {
            Ok(Duration::from_millis(5) + Duration::from_nanos(20 * u64::from(iterations)))
        });
        assert_eq!(speed, Ok(100_000_000));
    }

    #[test]
    fn a_measurement_that_others_held_up_does_not_count() {
        let mut runs = 0;
        let speed = estimate(|iterations| {
            runs += 1;
            let held_up = Duration::from_millis(if runs == 2 { 50 } else { 0 });
            Ok(held_up + Duration::from_nanos(20 * u64::from(iterations)))
        });
        assert_eq!(speed, Ok(100_000_000));
    }

    #[test]
    fn a_confirmation_that_others_held_up_does_not_count() {
        let mut runs = [740, 3].into_iter().map(Duration::from_millis);
        let speed = confirm(|_| Ok(runs.next().unwrap())).unwrap();
        assert!(speed >= USABLE_SPEED, "{speed}");
        assert_eq!(runs.next(), None);
    }

    #[test]
    fn an_emulated_kvm_is_slow_in_every_measurement() {
        let run = |iterations| Ok(Duration::from_nanos(1200 * u64::from(iterations)));
        assert!(estimate(run).unwrap() < USABLE_SPEED);
    }

    #[test]
    fn a_fast_kvm_is_usable() {
        let availability = judge(600_000_000, None);
        assert!(availability.usable);
        assert_eq!(availability.fix, None);
    }

    #[test]
    fn a_probe_of_this_host_agrees_with_the_speed_that_it_measured() {
        let availability = probe();
        let speed = availability.instructions_per_second;
        assert_eq!(
            availability.usable,
            speed.is_some_and(|speed| speed >= USABLE_SPEED)
        );
        assert!(
            availability.usable || availability.fix.is_some(),
            "{availability:?}"
        );
    }
}
