//! QEMU's command line, as a pure function of what is asked for.

use std::os::fd::RawFd;

use capsa_core::{CommandLine, CommandLineError, VmSpec};

use crate::network;

/// How QEMU runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accelerator {
    /// Software emulation: works everywhere, 10 to 20 times slower than hardware.
    #[default]
    Tcg,
    /// The kernel's hardware virtualization. Only where it was found to be usable.
    Kvm,
}

/// The descriptors that QEMU is given, by number.
pub(crate) mod handed {
    use super::RawFd;

    pub(crate) const ERRORS: RawFd = 2;
    pub(crate) const QMP: RawFd = 3;
    pub(crate) const SERIAL: RawFd = 4;
    pub(crate) const VIRTIO_CONSOLE: RawFd = 5;
    pub(crate) const LIFELINE: RawFd = 6;
    pub(crate) const LOG: RawFd = 7;
    pub(crate) const KERNEL: RawFd = 8;
    pub(crate) const INITRAMFS: RawFd = 9;
    /// The sockets to the devices, where nothing else has this number or a higher one.
    pub(crate) const FIRST_DEVICE: RawFd = 10;
}

/// Keeps QEMU from starting programs, changing its user or its limits, and from system calls that
/// nothing uses any more.
pub(crate) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// What decides the command line besides the specification.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    pub(crate) accelerator: Accelerator,
    /// Whether this QEMU was built with its system call filter.
    pub(crate) sandbox: bool,
    pub(crate) command_line: &'a str,
    pub(crate) initramfs: bool,
}

/// The arguments that follow the program's name.
pub(crate) fn arguments(spec: &VmSpec, options: Options<'_>) -> Vec<String> {
    let mut list = Arguments::default();
    let console = spec.console.enabled;
    // The interval timer and the real-time clock stay on: without a timer of known frequency the
    // guest cannot calibrate its time stamp counter.
    list.add(
        "-machine",
        format!(
            "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial={}",
            if console { "on" } else { "off" }
        ),
    );
    common(&mut list, spec, options.accelerator, options.sandbox);
    list.add("-global", "virtio-mmio.force-legacy=false");
    if console_sockets(&mut list, spec) {
        list.add("-device", "virtio-serial-device");
        list.add("-device", "virtconsole,chardev=console");
    }
    list.add("-device", "virtio-rng-device");
    network::add(&mut list, spec, "virtio-net-device");
    list.add("-device", "pvpanic");
    list.add("-kernel", path(handed::KERNEL));
    if options.initramfs {
        list.add("-initrd", path(handed::INITRAMFS));
    }
    list.add("-append", options.command_line);
    list.into_list()
}

/// What every machine has in common.
pub(crate) fn common(list: &mut Arguments, spec: &VmSpec, accelerator: Accelerator, sandbox: bool) {
    match accelerator {
        Accelerator::Tcg => {
            list.add("-accel", "tcg,thread=multi");
            list.add("-cpu", "max");
        }
        Accelerator::Kvm => {
            list.add("-accel", "kvm");
            list.add("-cpu", "host");
        }
    }
    list.add("-smp", format!("cpus={0},maxcpus={0}", spec.cpus));
    list.add("-m", format!("size={}B", spec.memory.as_bytes()));
    // Nothing but what is named here.
    list.flag("-nodefaults");
    list.flag("-no-user-config");
    list.add("-display", "none");
    list.add("-vga", "none");
    // A reset ends the VM and says why. CPUs are held until everything is connected.
    list.flag("-no-reboot");
    list.flag("-S");
    if sandbox {
        list.add("-sandbox", SANDBOX);
    }
    list.add("-chardev", socket("qmp", handed::QMP));
    list.add("-mon", "chardev=qmp,mode=control");
    // Triple faults are told only in the log.
    list.add("-d", "cpu_reset");
    list.add("-D", path(handed::LOG));
}

/// The console's character devices, `console` for a virtio console among them, and the serial port;
/// whether there is a console at all.
pub(crate) fn console_sockets(list: &mut Arguments, spec: &VmSpec) -> bool {
    if spec.console.enabled {
        list.add("-chardev", socket("serial", handed::SERIAL));
        list.add("-serial", "chardev:serial");
        list.add("-chardev", socket("console", handed::VIRTIO_CONSOLE));
    } else {
        list.add("-serial", "none");
    }
    spec.console.enabled
}

/// An inherited descriptor as a path.
fn path(descriptor: RawFd) -> String {
    format!("/proc/self/fd/{descriptor}")
}

/// A character device on an inherited, connected socket.
fn socket(id: &str, descriptor: RawFd) -> String {
    format!("socket,id={id},fd={descriptor}")
}

/// A command line in the making.
#[derive(Default)]
pub(crate) struct Arguments(Vec<String>);

impl Arguments {
    pub(crate) fn into_list(self) -> Vec<String> {
        self.0
    }

    pub(crate) fn add(&mut self, name: &str, value: impl Into<String>) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }
}

/// The caller's kernel parameters, and what a guest under `accelerator` needs besides; the caller
/// wins.
///
/// On a machine with reduced ACPI hardware, such as this one, a Linux with EFI support restarts by
/// EFI's services whether or not they are there, and then jumps to where a BIOS would be: it has to
/// be told to restart by ACPI.
///
/// An emulated guest's time stamp counter is the host's. It has no other clock to learn the
/// frequency from than the interval timer, read in a loop, which fails on a busy host; and without
/// the frequency Linux has no timer at all on a machine like this one, and hangs.
///
/// # Errors
/// Where they do not fit any more.
pub(crate) fn command_line(
    given: &str,
    accelerator: Accelerator,
    host_tsc_khz: Option<u64>,
) -> Result<String, CommandLineError> {
    let mut line = CommandLine::new(given)?;
    line.default_parameter("reboot=acpi");
    if let (Accelerator::Tcg, Some(khz)) = (accelerator, host_tsc_khz) {
        line.default_parameter(&format!("tsc_early_khz={khz}"));
        line.default_parameter("tsc=reliable");
    }
    line.finish()
}

#[cfg(test)]
mod tests {
    use capsa_core::{BootSpec, LinuxBoot, MemorySize};

    use super::*;

    fn spec() -> VmSpec {
        VmSpec::new(BootSpec::Linux(LinuxBoot {
            kernel: "/k".into(),
            initramfs: None,
            command_line: "console=ttyS0".into(),
        }))
    }

    const OPTIONS: Options<'_> = Options {
        accelerator: Accelerator::Tcg,
        sandbox: true,
        command_line: "console=ttyS0 a=\"b, c\"",
        initramfs: false,
    };

    fn value<'a>(list: &'a [String], name: &str) -> Vec<&'a str> {
        list.windows(2)
            .filter(|pair| pair[0] == name)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    #[test]
    fn cpus_and_memory_are_given_exactly() {
        let spec = VmSpec {
            cpus: 3,
            memory: MemorySize::bytes((64 << 20) + 4096),
            ..spec()
        };

        let list = arguments(&spec, OPTIONS);

        assert_eq!(value(&list, "-smp"), ["cpus=3,maxcpus=3"]);
        assert_eq!(value(&list, "-m"), ["size=67112960B"]);
    }

    #[test]
    fn the_command_line_is_passed_as_it_is() {
        let list = arguments(&spec(), OPTIONS);

        assert_eq!(value(&list, "-append"), ["console=ttyS0 a=\"b, c\""]);
    }

    #[test]
    fn an_emulated_guest_is_told_the_frequency_of_its_clock() {
        let line = |given, accelerator| command_line(given, accelerator, Some(2_596_000)).unwrap();
        assert_eq!(
            line("quiet", Accelerator::Tcg),
            "reboot=acpi tsc_early_khz=2596000 tsc=reliable quiet"
        );
        assert_eq!(
            line("tsc=unstable reboot=t", Accelerator::Tcg),
            "tsc_early_khz=2596000 tsc=unstable reboot=t"
        );
        assert_eq!(line("quiet", Accelerator::Kvm), "reboot=acpi quiet");
    }

    #[test]
    fn a_vm_without_console_has_no_console_device() {
        let mut spec = spec();
        spec.console.enabled = false;

        let list = arguments(&spec, OPTIONS);

        assert_eq!(value(&list, "-serial"), ["none"]);
        assert_eq!(value(&list, "-chardev"), ["socket,id=qmp,fd=3"]);
        assert!(value(&list, "-machine")[0].ends_with("isa-serial=off"));
    }

    #[test]
    fn the_sandbox_is_asked_for_only_where_it_is() {
        assert_eq!(value(&arguments(&spec(), OPTIONS), "-sandbox"), [SANDBOX]);
        let without = Options {
            sandbox: false,
            ..OPTIONS
        };
        assert!(value(&arguments(&spec(), without), "-sandbox").is_empty());
    }

    #[test]
    fn an_initramfs_is_named_only_where_there_is_one() {
        assert!(value(&arguments(&spec(), OPTIONS), "-initrd").is_empty());
        let with = Options {
            initramfs: true,
            ..OPTIONS
        };
        assert_eq!(
            value(&arguments(&spec(), with), "-initrd"),
            ["/proc/self/fd/9"]
        );
    }
}
