//! The KVM backend as the library sees it.

use std::path::PathBuf;
use std::time::Instant;

use async_trait::async_trait;
use capsa_core::{
    Availability, BackendCapabilities, BackendKind, BootKinds, ConsoleInput, ConsoleKinds,
    DiskFormat, Error, HypervisorBackend, LaunchedVm, MAX_CPUS, Result, VmSpec,
};

use crate::handle::KvmHandle;
use crate::{host_check, launch, plan, probe};

/// Capsa's own monitor on KVM.
///
/// Each VM runs in a process of its own, which is the caller's executable started again (or the one
/// that `CAPSA_MONITOR` names) and turned into a monitor ahead of its `main`.
#[derive(Clone, Debug)]
pub struct KvmBackend {
    executable: PathBuf,
}

impl Default for KvmBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl KvmBackend {
    /// A backend whose monitors are `CAPSA_MONITOR`, or else the caller's own executable.
    pub fn new() -> Self {
        Self::with_monitor(capsa_process::own_executable())
    }

    /// A backend whose monitors are `executable`, a program that links this crate.
    pub fn with_monitor(executable: impl Into<PathBuf>) -> Self {
        Self {
            executable: executable.into(),
        }
    }
}

#[async_trait]
impl HypervisorBackend for KvmBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Kvm
    }

    fn capabilities(&self) -> BackendCapabilities {
        let mut capabilities = BackendCapabilities::default();
        capabilities.boot = BootKinds {
            linux: true,
            uefi: false,
        };
        capabilities.max_cpus = MAX_CPUS;
        capabilities.console = ConsoleKinds {
            serial: true,
            virtio: true,
        };
        capabilities.preferred_console = ConsoleInput::Virtio;
        capabilities.power_button = true;
        capabilities.pause = true;
        capabilities.panic_device = true;
        capabilities.triple_fault = true;
        capabilities.disk_formats = vec![DiskFormat::Raw, DiskFormat::Qcow2];
        capabilities.disk_overlay = true;
        capabilities.disk_limits = true;
        capabilities.disk_resize = true;
        capabilities.shares = true;
        capabilities.read_only_shares = true;
        capabilities.share_filters = true;
        capabilities.share_owners = true;
        capabilities.uncached_shares = true;
        capabilities.vsock = true;
        capabilities.network = true;
        capabilities.network_mtu = true;
        capabilities.balloon = true;
        capabilities.in_process = true;
        capabilities.confined = true;
        capabilities
    }

    async fn probe(&self) -> Availability {
        match tokio::task::spawn_blocking(probe::probe).await {
            Ok(availability) => availability,
            Err(error) => Availability::unusable(
                format!("the probe of KVM failed: {error}"),
                "use the qemu backend",
            ),
        }
    }

    async fn check(&self, spec: &VmSpec) -> Result<()> {
        spec.check()?;
        self.capabilities().check(BackendKind::Kvm, spec)?;
        plan::command_line(&host_check::linux_boot(spec)?.command_line)?;
        let spec = spec.clone();
        let checked = tokio::task::spawn_blocking(move || {
            host_check::check(&spec)?;
            plan::check_devices(&spec)?;
            host_check::open_kvm().map(drop)
        });
        checked
            .await
            .map_err(|error| Error::io("cannot check the settings", std::io::Error::other(error)))?
    }

    async fn launch(&self, spec: &VmSpec) -> Result<LaunchedVm> {
        let started = Instant::now();
        let launching = launch::launch(spec, self.executable.clone());
        let (monitor, console, warnings) = match spec.start_timeout {
            None => launching.await?,
            Some(limit) => {
                tokio::time::timeout(limit, launching)
                    .await
                    .map_err(|_| Error::Timeout {
                        operation: "starting the virtual machine".to_owned(),
                        limit,
                        console: String::new(),
                    })??
            }
        };
        let handle = KvmHandle::new(monitor, started.elapsed())?;
        Ok(LaunchedVm {
            handle: Box::new(handle),
            console,
            warnings,
        })
    }
}
