//! What a VM boots, and the kernel parameters that go with it.

use std::path::PathBuf;

use capsa_core::{
    BackendCapabilities, BootSpec, CommandLine, ConsoleInput, LinuxBoot, Result, ShareSpec,
    UefiBoot,
};

use capsa_guest::discover::{Found, Origin, SearchPath};
use capsa_guest::store::DEFAULT_KERNEL;

use crate::builder::VmBuilder;
use crate::guest_mounts;

/// What a VM is made from. Its type decides which builder [`Capsa::vm`](crate::Capsa::vm) gives.
pub trait VmConfig {
    /// The builder for it.
    type Builder;

    /// Starts building.
    fn into_builder(self) -> Self::Builder;
}

/// Direct boot of a Linux kernel.
///
/// [`new`](Self::new) takes the default kernel and the default initramfs: those that the variables
/// `CAPSA_KERNEL` and `CAPSA_INITRD` name, else those of the user's data directory, beside the
/// executable, or in `/usr/share/capsa`. A kernel of the caller's own boots with exactly what the
/// caller adds.
#[derive(Clone, Debug, Default)]
pub struct LinuxBootConfig {
    kernel: Option<PathBuf>,
    initramfs: Initramfs,
    pub(crate) parameters: String,
}

#[derive(Clone, Debug, Default)]
enum Initramfs {
    /// The default one with the default kernel, none with another.
    #[default]
    Unsaid,
    Default,
    None,
    File(PathBuf),
}

impl LinuxBootConfig {
    /// The default kernel with the default initramfs, whose init is a shell on the console.
    pub fn new() -> Self {
        Self::default()
    }

    /// Boots this kernel: a file (ELF `vmlinux` or bzImage on x86-64, `Image` on aarch64), or the
    /// name of a stored one where there is no such file.
    pub fn kernel(mut self, file: impl Into<PathBuf>) -> Self {
        self.kernel = Some(file.into());
        self
    }

    /// Gives the kernel this initial file system.
    pub fn initramfs(mut self, file: impl Into<PathBuf>) -> Self {
        self.initramfs = Initramfs::File(file.into());
        self
    }

    /// Gives the kernel the default initial file system, also where it is the caller's own.
    pub fn default_initramfs(mut self) -> Self {
        self.initramfs = Initramfs::Default;
        self
    }

    /// Gives the kernel no initial file system.
    pub fn without_initramfs(mut self) -> Self {
        self.initramfs = Initramfs::None;
        self
    }
}

impl VmConfig for LinuxBootConfig {
    type Builder = LinuxVmBuilder;

    fn into_builder(self) -> LinuxVmBuilder {
        VmBuilder::new(self)
    }
}

/// Boot by UEFI firmware, which finds what to boot on the disks.
#[derive(Clone, Debug, Default)]
pub struct UefiBootConfig(UefiBoot);

impl UefiBootConfig {
    /// The backend's own firmware, which forgets its variables when the VM ends.
    pub fn new() -> Self {
        Self::default()
    }

    /// Boots this firmware.
    pub fn firmware(mut self, file: impl Into<PathBuf>) -> Self {
        self.0.firmware = Some(file.into());
        self
    }

    /// Keeps the firmware's variables in this file, which is made when it is not there.
    pub fn variable_store(mut self, file: impl Into<PathBuf>) -> Self {
        self.0.variable_store = Some(file.into());
        self
    }
}

impl VmConfig for UefiBootConfig {
    type Builder = UefiVmBuilder;

    fn into_builder(self) -> UefiVmBuilder {
        VmBuilder::new(self)
    }
}

/// Builds a VM that boots a Linux kernel directly.
pub type LinuxVmBuilder = VmBuilder<LinuxBootConfig>;

/// Builds a VM that boots by UEFI firmware.
pub type UefiVmBuilder = VmBuilder<UefiBootConfig>;

/// What can be booted. Not to be implemented elsewhere.
pub trait Bootable: Send + 'static {
    /// Finds the files. Reads the file system.
    #[doc(hidden)]
    fn resolve(self) -> Result<ResolvedBoot>;
}

/// A boot whose files are found.
#[derive(Clone, Debug)]
#[doc(hidden)]
pub enum ResolvedBoot {
    Linux {
        kernel: PathBuf,
        initramfs: Option<PathBuf>,
        default_kernel: bool,
        parameters: CommandLine,
    },
    Uefi(UefiBoot),
}

impl Bootable for LinuxBootConfig {
    fn resolve(self) -> Result<ResolvedBoot> {
        let parameters = CommandLine::new(&self.parameters)?;
        let search = SearchPath::from_environment();
        let kernel = search.kernel(self.kernel.as_deref())?;
        let initramfs = match &self.initramfs {
            Initramfs::File(file) => Some(search.initramfs(Some(file))?),
            Initramfs::Default => Some(search.initramfs(None)?),
            Initramfs::Unsaid if self.kernel.is_none() => Some(search.initramfs(None)?),
            Initramfs::Unsaid | Initramfs::None => None,
        };
        Ok(ResolvedBoot::Linux {
            default_kernel: is_default(&kernel),
            kernel: kernel.path,
            initramfs: initramfs.map(|found| found.path),
            parameters,
        })
    }
}

/// Whether it is the kernel that this project builds, whose drivers are known.
fn is_default(kernel: &Found) -> bool {
    match &kernel.origin {
        Origin::Default(_) => true,
        Origin::Name(name) => name == DEFAULT_KERNEL,
        _ => false,
    }
}

impl Bootable for UefiBootConfig {
    fn resolve(self) -> Result<ResolvedBoot> {
        Ok(ResolvedBoot::Uefi(self.0))
    }
}

impl ResolvedBoot {
    /// The boot for a backend, and which console is given the input.
    pub(crate) fn spec(
        &self,
        capabilities: &BackendCapabilities,
        console: bool,
        shares: &[ShareSpec],
    ) -> Result<(BootSpec, ConsoleInput)> {
        match self {
            Self::Uefi(uefi) => {
                // Firmware talks on the serial port, where there is one.
                let input = default_console(false, capabilities);
                Ok((BootSpec::Uefi(uefi.clone()), input))
            }
            Self::Linux {
                kernel,
                initramfs,
                default_kernel,
                parameters,
            } => {
                let mut line = parameters.clone();
                // A panic ends the VM at once instead of leaving it hanging.
                line.default_parameter("panic=-1");
                if console {
                    let device = default_console(*default_kernel, capabilities);
                    line.default_parameter(&format!("console={}", device_name(device)));
                }
                if *default_kernel {
                    line.default_parameter("quiet");
                    // Without a PCI bus the kernel reports an error that is none.
                    line.default_parameter("loglevel=3");
                }
                for parameter in guest_mounts::parameters(shares) {
                    line.add_parameter(&parameter);
                }
                let input = match line.last_value("console") {
                    Some(name) if name.starts_with("hvc") => ConsoleInput::Virtio,
                    _ => ConsoleInput::Serial,
                };
                let boot = LinuxBoot {
                    kernel: kernel.clone(),
                    initramfs: initramfs.clone(),
                    command_line: line.finish()?,
                };
                Ok((BootSpec::Linux(boot), input))
            }
        }
    }
}

/// The default kernel has drivers for both; other kernels often have the virtio one as a module
/// only.
fn default_console(default_kernel: bool, capabilities: &BackendCapabilities) -> ConsoleInput {
    let console = capabilities.console;
    match (console.serial, console.virtio) {
        (true, false) => ConsoleInput::Serial,
        (false, true) => ConsoleInput::Virtio,
        _ if default_kernel => capabilities.preferred_console,
        _ => ConsoleInput::Serial,
    }
}

fn device_name(device: ConsoleInput) -> &'static str {
    match device {
        ConsoleInput::Virtio => "hvc0",
        ConsoleInput::Serial if cfg!(target_arch = "aarch64") => "ttyAMA0",
        ConsoleInput::Serial => "ttyS0",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa_core::ConsoleKinds;

    fn capabilities(serial: bool, virtio: bool) -> BackendCapabilities {
        let mut capabilities = BackendCapabilities::default();
        capabilities.console = ConsoleKinds { serial, virtio };
        capabilities.preferred_console = ConsoleInput::Virtio;
        capabilities
    }

    fn line(
        default_kernel: bool,
        given: &str,
        capabilities: &BackendCapabilities,
    ) -> (String, ConsoleInput) {
        let boot = ResolvedBoot::Linux {
            kernel: "k".into(),
            initramfs: None,
            default_kernel,
            parameters: CommandLine::new(given).unwrap(),
        };
        match boot.spec(capabilities, true, &[]).unwrap() {
            (BootSpec::Linux(linux), input) => (linux.command_line, input),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_default_kernel_is_quiet_and_uses_the_preferred_console() {
        assert_eq!(
            line(true, "", &capabilities(true, true)),
            (
                "panic=-1 console=hvc0 quiet loglevel=3 ".to_owned(),
                ConsoleInput::Virtio
            )
        );
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_kernel_of_the_callers_own_uses_the_serial_console() {
        assert_eq!(
            line(false, "", &capabilities(true, true)),
            ("panic=-1 console=ttyS0 ".to_owned(), ConsoleInput::Serial)
        );
    }

    #[test]
    fn a_backend_with_one_console_decides_the_default() {
        assert_eq!(
            line(false, "", &capabilities(false, true)).1,
            ConsoleInput::Virtio
        );
        assert_eq!(
            line(true, "", &capabilities(true, false)).1,
            ConsoleInput::Serial
        );
    }

    #[test]
    fn firmware_has_the_serial_console_where_there_is_one() {
        let input = |serial| {
            let boot = ResolvedBoot::Uefi(UefiBoot::default());
            boot.spec(&capabilities(serial, true), true, &[]).unwrap().1
        };
        assert_eq!(input(true), ConsoleInput::Serial);
        assert_eq!(input(false), ConsoleInput::Virtio);
    }

    #[test]
    fn the_callers_last_console_gets_the_input() {
        let (text, input) = line(
            true,
            "console=hvc0 console=ttyS0 panic=5",
            &capabilities(true, true),
        );
        assert_eq!(text, "quiet loglevel=3 console=hvc0 console=ttyS0 panic=5");
        assert_eq!(input, ConsoleInput::Serial);
    }
}
