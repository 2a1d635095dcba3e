//! Virtualization.framework in this process. Everything of a VM is touched on the VM's own serial
//! dispatch queue, so no thread of the caller's is needed, not even the main one.

mod configuration;
mod delegates;
mod entitlement;
mod identity;
mod machine;
mod queue;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use capsa_apple_plan::{EngineFailure, FailureKind, HostLimits, MacosVersion, VzPlan};
use objc2::available;
use objc2_foundation::{NSError, NSProcessInfo};
use objc2_virtualization::{
    VZGenericPlatformConfiguration, VZVirtualMachine, VZVirtualMachineConfiguration,
};
use tokio::sync::mpsc;

use crate::engine::{EVENT_BACKLOG, Engine, EnginePorts, StartedMachine};
use machine::VzMachine;

/// Virtualization.framework. The program must be signed with the entitlement
/// `com.apple.security.virtualization`.
#[derive(Debug, Default)]
pub struct VzEngine(());

impl VzEngine {
    /// The framework. Nothing is called yet.
    pub fn new() -> Self {
        Self(())
    }
}

#[async_trait]
impl Engine for VzEngine {
    async fn host(&self) -> Result<HostLimits, EngineFailure> {
        // An unsigned program would get an error that says nothing.
        entitlement::check()?;
        // SAFETY: class methods without arguments that only tell facts of the host.
        let (supported, max_cpus, min_memory, max_memory) = unsafe {
            (
                VZVirtualMachine::isSupported(),
                VZVirtualMachineConfiguration::maximumAllowedCPUCount(),
                VZVirtualMachineConfiguration::minimumAllowedMemorySize(),
                VZVirtualMachineConfiguration::maximumAllowedMemorySize(),
            )
        };
        if !supported {
            return Err(EngineFailure::new(
                FailureKind::Unavailable,
                "this Mac has no hardware virtualization, or is a virtual machine itself",
                "run on a Mac of 2018 or later; inside a virtual machine, enable nesting",
            ));
        }
        let version = NSProcessInfo::processInfo().operatingSystemVersion();
        let part = |number: isize| u16::try_from(number).unwrap_or(u16::MAX);
        // SAFETY: a class method without arguments, on a macOS that has it.
        let nested = available!(macos = 15.0)
            && unsafe { VZGenericPlatformConfiguration::isNestedVirtualizationSupported() };
        Ok(HostLimits {
            macos: MacosVersion::new(part(version.majorVersion), part(version.minorVersion)),
            apple_processor: cfg!(target_arch = "aarch64"),
            max_cpus: u32::try_from(max_cpus).unwrap_or(u32::MAX),
            min_memory_bytes: min_memory,
            max_memory_bytes: max_memory,
            nested_virtualization: nested,
        })
    }

    async fn start(
        &self,
        plan: VzPlan,
        ports: EnginePorts,
        restore: Option<PathBuf>,
    ) -> Result<StartedMachine, EngineFailure> {
        entitlement::check()?;
        let (events, received) = mpsc::channel(EVENT_BACKLOG);
        let machine = VzMachine::build(plan, ports, restore.clone(), events).await?;
        match restore {
            None => machine.start().await?,
            Some(file) => machine.restore(file).await?,
        }
        Ok(StartedMachine {
            machine: Arc::new(machine),
            events: received,
            process_id: None,
        })
    }
}

/// An error of the framework in its own words.
fn failure(error: &NSError) -> EngineFailure {
    let reason = match error.localizedFailureReason() {
        Some(reason) => format!("{} {reason}", error.localizedDescription()),
        None => error.localizedDescription().to_string(),
    };
    EngineFailure::new(
        FailureKind::Framework,
        format!("{reason} ({} {})", error.domain(), error.code()),
        "see Console.app for messages of com.apple.Virtualization",
    )
}
