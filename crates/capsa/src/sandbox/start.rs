//! From settings to an agent that takes commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use capsa_agent_client::boot::{
    BootConfig, DiskName, MountConfig, MountSource, RootChanges, RootConfig,
};
use capsa_agent_client::{AGENT_PORT, AgentError, CONTROL_PORT, Control, Timestamp};
use capsa_core::{BootPhase, Error, Result, ShareAccess, VmExit, VsockSpec, Warning};

use tokio::task::JoinHandle;

use super::config::SandboxConfig;
use super::rootfs::{ROOT_TAG, RootParts};
use super::timings::{BootTimings, Stopwatch};
use crate::Capsa;
use crate::boot::LinuxBootConfig;
use crate::handle::VmHandle;
use crate::network::Interface;

/// Makes init wait for the boot message instead of running a shell on the console.
const AGENT_WAITS: &str = "capsa.agent=wait";
/// Bytes of entropy that a guest is given.
const ENTROPY_BYTES: usize = 256;
/// How much of the console an error shows.
const CONSOLE_TAIL: usize = 2 * 1024;

/// A machine whose agent takes commands.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) vm: Arc<VmHandle>,
    pub(crate) timings: BootTimings,
    pub(crate) warnings: Vec<Warning>,
}

/// Boots a machine for `config`. Dropping the future ends what was started.
///
/// # Errors
/// Of [`build`](crate::LinuxVmBuilder::build); [`Error::Start`] with the phase, the end of the
/// console and a hint; [`Error::Timeout`] where the sandbox's time was over first.
pub(crate) async fn start(config: &SandboxConfig, network: Option<Interface>) -> Result<Started> {
    let booting = boot(config, network);
    let Some(limit) = config.timeout else {
        return booting.await;
    };
    tokio::time::timeout(limit, booting)
        .await
        .unwrap_or_else(|_| {
            Err(Error::Timeout {
                operation: "the start of the sandbox".to_owned(),
                limit,
                console: String::new(),
            })
        })
}

async fn boot(config: &SandboxConfig, network: Option<Interface>) -> Result<Started> {
    let mut watch = Stopwatch::start();
    let mut timings = BootTimings::default();
    config.check()?;
    let (vm, message) = build(config, network).await?;
    timings.check = watch.lap();
    vm.start().await?;
    let failed = |phase, reason: String, fix: &str| Error::Start {
        phase,
        reason,
        fix: fix.to_owned(),
        console: console_end(&vm),
    };
    let mut listener = vm
        .running("listen to it")?
        .vsock_listen(CONTROL_PORT)
        .await?;
    timings.monitor = watch.lap();

    let stream = tokio::select! {
        accepted = listener.accept() => match accepted {
            Ok(stream) => stream,
            Err(Error::Ended(exit)) => return Err(ended(&failed, BootPhase::Kernel, &exit)),
            Err(error) => return Err(error),
        },
        exit = vm.wait() => return Err(ended(&failed, BootPhase::Kernel, &exit)),
    };
    timings.kernel = watch.lap();

    let set_up = async {
        let mut control = Control::accept(stream).await?;
        control.boot(message(Timestamp::now())).await
    };
    let report = tokio::select! {
        report = set_up => report,
        exit = vm.wait() => return Err(ended(&failed, BootPhase::Agent, &exit)),
    };
    let report =
        report.map_err(|error| failed(BootPhase::Agent, error.to_string(), fix(&error)))?;
    timings.agent = watch.lap();

    let mut warnings = vm.warnings();
    warnings.extend(report.warnings.into_iter().map(Warning));
    Ok(Started {
        vm: Arc::new(vm),
        timings,
        warnings,
    })
}

/// The machine, checked and not started, and the message that its agent is to get.
async fn build(
    config: &SandboxConfig,
    network: Option<Interface>,
) -> Result<(VmHandle, impl FnOnce(Timestamp) -> BootConfig)> {
    let rootfs = config.rootfs.clone();
    // It looks at files.
    let prepared = tokio::task::spawn_blocking(move || (rootfs.parts(), entropy()));
    let (root, entropy) = prepared
        .await
        .map_err(|error| Error::io("looking at the root file system", error.into()))?;
    let root = root?;
    let mut boot = LinuxBootConfig::new().default_initramfs();
    if let Some(kernel) = &config.kernel {
        boot = boot.kernel(kernel);
    }
    if let Some(initramfs) = &config.initramfs {
        boot = boot.initramfs(initramfs);
    }
    let mut vm = Capsa::vm(boot)
        .cpus(config.cpus)
        .memory(config.memory)
        .isolation(config.isolation)
        .mounted_by_agent()
        .vsock(VsockSpec {
            listen_ports: vec![CONTROL_PORT],
            connect_ports: vec![AGENT_PORT],
            ..VsockSpec::default()
        })
        .cmdline(AGENT_WAITS);
    if let Some(name) = &config.name {
        vm = vm.name(name);
    }
    if let Some(backend) = config.backend {
        vm = vm.backend(backend);
    }
    if let Some(network) = network {
        vm = vm.network(network);
    }
    match &root {
        RootParts::None => {}
        RootParts::Share(share) => vm = vm.share(share.clone()),
        RootParts::Disk { disk, .. } => vm = vm.disk(disk.clone()),
    }
    let mut mounts = Vec::new();
    for (index, share) in config.shares.iter().enumerate() {
        let mut share = share.clone();
        let tag = share
            .tag
            .get_or_insert_with(|| format!("capsa-share{index}"))
            .clone();
        mounts.push(MountConfig {
            source: MountSource::VirtioFs { tag },
            target: share.guest_path.as_path().into(),
            read_only: share.access == ShareAccess::ReadOnly,
            options: String::new(),
        });
        vm = vm.share(share);
    }
    let vm = vm.build().await?;
    let root = root_config(config, &root);
    let host_name = config.name.clone();
    let environment = config
        .environment
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect();
    let message = |time| BootConfig {
        host_name,
        time: Some(time),
        entropy: entropy.into(),
        environment,
        root,
        mounts,
        ..BootConfig::default()
    };
    Ok((vm, message))
}

fn root_config(config: &SandboxConfig, parts: &RootParts) -> Option<RootConfig> {
    let layer = match parts {
        RootParts::None => return None,
        RootParts::Share(_) => MountSource::VirtioFs {
            tag: ROOT_TAG.to_owned(),
        },
        RootParts::Disk { file_system, .. } => MountSource::Disk {
            disk: DiskName::Index(0),
            file_system: (*file_system).to_owned(),
        },
    };
    let changes = if config.rootfs.needs_layer() {
        RootChanges::ThrownAway { limit: None }
    } else {
        RootChanges::Written
    };
    Some(RootConfig {
        layers: vec![layer],
        changes,
        masks: Vec::new(),
    })
}

/// Random bytes for the guest, which may have no source of its own early on.
fn entropy() -> Vec<u8> {
    let mut bytes = vec![0; ENTROPY_BYTES];
    let read = std::fs::File::open("/dev/urandom")
        .and_then(|mut source| std::io::Read::read_exact(&mut source, &mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    bytes
}

fn console_end(vm: &VmHandle) -> String {
    vm.console()
        .map(|console| String::from_utf8_lossy(&console.tail(CONSOLE_TAIL)).into_owned())
        .unwrap_or_default()
}

fn ended(
    failed: &impl Fn(BootPhase, String, &str) -> Error,
    phase: BootPhase,
    exit: &VmExit,
) -> Error {
    let fix = match (exit, phase) {
        (VmExit::Killed, _) => "start it again",
        (VmExit::MonitorFailure(_), _) => "run `capsa doctor` to see what this host can do",
        (_, BootPhase::Agent) => {
            "see on the console what the agent could not do; the root file system must be readable"
        }
        (VmExit::GuestPanic(_) | VmExit::TripleFault, _) => {
            "give it more memory, or boot the default kernel and initramfs (`cargo xtask setup`)"
        }
        _ => {
            "boot the default kernel and initramfs, whose init is the agent: unset CAPSA_KERNEL and \
             CAPSA_INITRD, or renew them with `cargo xtask initramfs`"
        }
    };
    failed(phase, exit.to_string(), fix)
}

fn fix(error: &AgentError) -> &'static str {
    match error {
        AgentError::Protocol(_) => {
            "renew the initramfs with `cargo xtask initramfs`: its agent is of another version"
        }
        AgentError::Refused { .. } => "correct the setting that it names",
        _ => "see the end of the console",
    }
}

/// Ends a machine when its time is over; dropped before, it lets it be.
#[derive(Debug)]
pub(crate) struct TimeLimit {
    over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl TimeLimit {
    pub(crate) fn begin(vm: &Arc<VmHandle>, limit: Duration) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (vm, tell) = (Arc::downgrade(vm), over.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep(limit).await;
            let Some(vm) = vm.upgrade() else {
                return;
            };
            tell.store(vm.status().exit().is_none(), Ordering::Release);
            if let Err(error) = vm.kill().await {
                tracing::warn!(%error, "a sandbox whose time is over cannot be ended");
            }
        });
        Self { over, task }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

impl Drop for TimeLimit {
    fn drop(&mut self) {
        self.task.abort();
    }
}
