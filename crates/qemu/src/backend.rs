use std::sync::Arc;

use async_trait::async_trait;
use capsa_core::{
    Availability, BackendCapabilities, BackendKind, BootKinds, BootSpec, ConsoleInput,
    ConsoleKinds, DiskFormat, Error, HypervisorBackend, LaunchedVm, MAX_CPUS, Result, VmSpec,
};
use capsa_guest::Arch;
use capsa_guest::inspect::KernelFormat;
use capsa_process::{BootFiles, check_host_memory};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::arguments::Accelerator;
use crate::devices;
use crate::installation::{Installation, InstallationError, SearchPath};
use crate::{launch, uefi};

/// Runs VMs on QEMU.
///
/// The guest runs in a process of its own, under QEMU's system call filter where it has one, and
/// otherwise with the caller's authority: it counts as not confined. Its disks, shares and sockets are
/// served by another process, which is confined as a monitor on KVM is.
#[derive(Clone, Debug)]
pub struct QemuBackend {
    accelerator: Accelerator,
    search: SearchPath,
    /// What was found, once something was.
    found: Arc<OnceCell<Installation>>,
}

impl Default for QemuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl QemuBackend {
    /// QEMU as the environment has it: the program that `CAPSA_QEMU` names, or the first
    /// `qemu-system-x86_64` in `PATH`. It emulates in software.
    pub fn new() -> Self {
        Self {
            accelerator: Accelerator::default(),
            search: SearchPath::from_environment(),
            found: Arc::default(),
        }
    }

    /// The same with another accelerator. [`Accelerator::Kvm`] only where KVM was found usable.
    #[must_use]
    pub fn with_accelerator(mut self, accelerator: Accelerator) -> Self {
        self.accelerator = accelerator;
        self
    }

    /// The QEMU that is used.
    ///
    /// # Errors
    /// Why there is none, with the fix.
    pub async fn installation(&self) -> Result<&Installation, InstallationError> {
        let find = || async { Installation::inspect(self.search.find()?).await };
        self.found.get_or_try_init(find).await
    }

    async fn require(&self) -> Result<&Installation> {
        self.installation()
            .await
            .map_err(|error| Error::unavailable(BackendKind::Qemu, error.to_string(), error.fix()))
    }

    fn check_host(spec: &VmSpec, accelerator: Accelerator) -> Result<()> {
        check_host_memory(spec.memory)?;
        devices::check_count(spec)?;
        if let BootSpec::Uefi(boot) = &spec.boot {
            return uefi::check(spec, boot);
        }
        devices::check(spec)?;
        launch::guest_command_line(spec, accelerator)?;
        let files = BootFiles::open(spec, BackendKind::Qemu, Arch::X86_64)?;
        if files.image.format == KernelFormat::Elf && files.image.pvh_entry().is_none() {
            let BootSpec::Linux(boot) = &spec.boot else {
                return Ok(());
            };
            return Err(Error::file(
                "kernel",
                &boot.kernel,
                "it is an ELF kernel without a PVH entry point, which QEMU needs",
                "build it with CONFIG_PVH=y, or give the bzImage of the same build",
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl HypervisorBackend for QemuBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Qemu
    }

    fn capabilities(&self) -> BackendCapabilities {
        let mut capabilities = BackendCapabilities::default();
        capabilities.boot = BootKinds {
            linux: true,
            uefi: true,
        };
        capabilities.max_cpus = MAX_CPUS;
        capabilities.console = ConsoleKinds {
            serial: true,
            virtio: true,
        };
        // QEMU drops a virtio console's output where its socket is full.
        capabilities.preferred_console = ConsoleInput::Serial;
        capabilities.disk_formats = vec![DiskFormat::Raw, DiskFormat::Qcow2];
        capabilities.disk_overlay = true;
        capabilities.disk_limits = true;
        capabilities.shares = true;
        capabilities.read_only_shares = true;
        capabilities.share_filters = true;
        capabilities.share_owners = true;
        capabilities.uncached_shares = true;
        capabilities.vsock = true;
        capabilities.balloon = true;
        capabilities.power_button = true;
        capabilities.network = true;
        capabilities.network_mtu = true;
        capabilities.pause = true;
        capabilities.panic_device = true;
        // With KVM, QEMU reports it as any other reset.
        capabilities.triple_fault = self.accelerator == Accelerator::Tcg;
        capabilities
    }

    async fn probe(&self) -> Availability {
        match self.installation().await {
            Ok(installation) => {
                let how = match self.accelerator {
                    Accelerator::Tcg => {
                        "software emulation, 10 to 20 times slower than hardware virtualization"
                    }
                    Accelerator::Kvm => "hardware virtualization by KVM",
                };
                let mut found = Availability::usable(format!(
                    "QEMU {} at {}: {how}",
                    installation.version,
                    installation.program.display()
                ));
                found.version = Some(installation.version.to_string());
                found
            }
            Err(error) if error.is_present() => {
                Availability::unusable(error.to_string(), error.fix())
            }
            Err(error) => Availability::absent(error.to_string(), error.fix()),
        }
    }

    async fn check(&self, spec: &VmSpec) -> Result<()> {
        spec.check()?;
        self.capabilities().check(BackendKind::Qemu, spec)?;
        let (owned, accelerator) = (spec.clone(), self.accelerator);
        spawn_blocking(move || Self::check_host(&owned, accelerator))
            .await
            .unwrap_or_else(|error| {
                Err(Error::io(
                    "the check was broken off",
                    std::io::Error::other(error),
                ))
            })?;
        self.require().await?;
        Ok(())
    }

    async fn launch(&self, spec: &VmSpec) -> Result<LaunchedVm> {
        launch::launch(spec, self.require().await?, self.accelerator).await
    }
}
