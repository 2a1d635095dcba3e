//! A backend without a hypervisor, for unit tests: the test plays the guest.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use capsa_core::{
    Availability, BackendCapabilities, BackendKind, BackendVmHandle, BootKinds, ConsoleIo,
    ConsoleKinds, Error, HypervisorBackend, LaunchedVm, Result, VmExit, VmSpec, VmStatus, Warning,
    WindowSize,
};
use tokio::io::DuplexStream;
use tokio::sync::{oneshot, watch};

use crate::builder::VmBuilder;
use crate::choice::Candidate;
use crate::{BackendChoice, UefiBootConfig, VmHandle};

#[derive(Debug)]
pub(crate) struct FakeBackend {
    kind: BackendKind,
    capabilities: BackendCapabilities,
    availability: Availability,
    /// The guest of the next start.
    guest: Mutex<Option<oneshot::Sender<FakeGuest>>>,
    launch: Launch,
}

/// How a start goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Launch {
    Works,
    Fails,
    Hangs,
}

/// What the guest does when its power button is pressed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum OnPowerButton {
    PowersOff,
    Nothing,
}

/// The guest's side of a VM.
#[derive(Debug)]
pub(crate) struct FakeGuest {
    pub(crate) output: DuplexStream,
    pub(crate) input: DuplexStream,
    status: watch::Sender<VmStatus>,
    power_button: Arc<Mutex<OnPowerButton>>,
}

impl FakeGuest {
    /// Ends the VM as a backend does: first the output, then the status.
    pub(crate) fn exit(self, exit: VmExit) {
        drop(self.output);
        self.status.send_replace(VmStatus::Exited(exit));
    }

    pub(crate) fn on_power_button(&self, reaction: OnPowerButton) {
        *self.power_button.lock().unwrap() = reaction;
    }

    /// Whether the host has let go of the VM.
    pub(crate) fn ended(&self) -> bool {
        self.status.borrow().exit().is_some()
    }
}

impl FakeBackend {
    pub(crate) fn new(kind: BackendKind) -> Self {
        let mut capabilities = BackendCapabilities::default();
        capabilities.boot = BootKinds {
            linux: true,
            uefi: true,
        };
        capabilities.max_cpus = 8;
        capabilities.console = ConsoleKinds {
            serial: true,
            virtio: true,
        };
        capabilities.power_button = true;
        capabilities.pause = true;
        Self {
            kind,
            capabilities,
            availability: Availability::usable("it is a test's"),
            guest: Mutex::default(),
            launch: Launch::Works,
        }
    }

    pub(crate) fn available(self, availability: Availability) -> Self {
        Self {
            availability,
            ..self
        }
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut BackendCapabilities)) -> Self {
        change(&mut self.capabilities);
        self
    }

    pub(crate) fn launching(self, launch: Launch) -> Self {
        Self { launch, ..self }
    }

    /// A VM on this backend, not started, and the guest that it will have.
    pub(crate) async fn vm(
        self,
        change: impl FnOnce(VmBuilder<UefiBootConfig>) -> VmBuilder<UefiBootConfig>,
    ) -> (VmHandle, oneshot::Receiver<FakeGuest>) {
        let (sender, guest) = oneshot::channel();
        *self.guest.lock().unwrap() = Some(sender);
        let vm = change(VmBuilder::new(UefiBootConfig::new()))
            .build_from(&[Candidate::new(self)], BackendChoice::Auto)
            .await
            .unwrap();
        (vm, guest)
    }
}

/// A VM that runs.
pub(crate) async fn started() -> (VmHandle, FakeGuest) {
    started_with(|builder| builder).await
}

pub(crate) async fn started_with(
    change: impl FnOnce(VmBuilder<UefiBootConfig>) -> VmBuilder<UefiBootConfig>,
) -> (VmHandle, FakeGuest) {
    let (vm, guest) = FakeBackend::new(BackendKind::Kvm).vm(change).await;
    vm.start().await.unwrap();
    (vm, guest.await.unwrap())
}

#[async_trait]
impl HypervisorBackend for FakeBackend {
    fn kind(&self) -> BackendKind {
        self.kind
    }

    fn capabilities(&self) -> BackendCapabilities {
        self.capabilities.clone()
    }

    async fn probe(&self) -> Availability {
        self.availability.clone()
    }

    async fn check(&self, _: &VmSpec) -> Result<()> {
        Ok(())
    }

    async fn launch(&self, _: &VmSpec) -> Result<LaunchedVm> {
        match self.launch {
            Launch::Works => {}
            Launch::Fails => {
                return Err(Error::start(
                    capsa_core::BootPhase::Monitor,
                    "no memory is left",
                    "free some",
                ));
            }
            Launch::Hangs => std::future::pending().await,
        }
        let (status, _) = watch::channel(VmStatus::Running);
        let (output, guest_output) = tokio::io::duplex(64 * 1024);
        let (input, guest_input) = tokio::io::duplex(1024);
        let power_button = Arc::new(Mutex::new(OnPowerButton::PowersOff));
        if let Some(sender) = self.guest.lock().unwrap().take() {
            let _ = sender.send(FakeGuest {
                output: guest_output,
                input: guest_input,
                status: status.clone(),
                power_button: power_button.clone(),
            });
        }
        Ok(LaunchedVm {
            handle: Box::new(FakeVm {
                status,
                power_button,
            }),
            console: Some(ConsoleIo {
                output: Box::new(output),
                input: Box::new(input),
            }),
            warnings: vec![Warning("a layer is missing".to_owned())],
        })
    }
}

struct FakeVm {
    status: watch::Sender<VmStatus>,
    power_button: Arc<Mutex<OnPowerButton>>,
}

impl FakeVm {
    fn end(&self, exit: VmExit) {
        self.status.send_if_modified(|status| {
            let running = status.exit().is_none();
            if running {
                *status = VmStatus::Exited(exit);
            }
            running
        });
    }
}

#[async_trait]
impl BackendVmHandle for FakeVm {
    fn status(&self) -> watch::Receiver<VmStatus> {
        self.status.subscribe()
    }

    fn process_id(&self) -> Option<u32> {
        Some(4242)
    }

    async fn power_button(&self) -> Result<()> {
        if *self.power_button.lock().unwrap() == OnPowerButton::PowersOff {
            self.end(VmExit::PoweredOff);
        }
        Ok(())
    }

    async fn kill(&self) -> Result<()> {
        self.end(VmExit::Killed);
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.status.send_replace(VmStatus::Paused);
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.status.send_replace(VmStatus::Running);
        Ok(())
    }

    async fn resize_console(&self, _: WindowSize) -> Result<bool> {
        Ok(true)
    }

    fn start_duration(&self) -> Duration {
        Duration::from_millis(7)
    }
}

impl Drop for FakeVm {
    fn drop(&mut self) {
        self.end(VmExit::Killed);
    }
}
