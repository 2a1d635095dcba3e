use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use capsa_apple_plan::{
    Architecture, EngineFailure, FailureKind, VzPlan, check_files, frame_sockets, vz_capabilities,
};
use capsa_core::{
    Availability, BackendCapabilities, BackendKind, BootPhase, ConsoleInput, ConsoleIo, Error,
    HypervisorBackend, LaunchedVm, Result, VmSpec,
};
use capsa_process::console::{ConsolePorts, ConsoleRelay};

use crate::engine::{Engine, EnginePorts};
use crate::handle::{EngineVmHandle, MachineParts};

/// Runs VMs by an [`Engine`].
pub struct EngineBackend<E> {
    kind: BackendKind,
    engine: Arc<E>,
    architecture: Architecture,
    restore: Option<PathBuf>,
}

impl<E> fmt::Debug for EngineBackend<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBackend")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl<E: Engine> EngineBackend<E> {
    /// The backend `kind` by `engine`.
    pub fn new(kind: BackendKind, engine: E) -> Self {
        Self {
            kind,
            engine: Arc::new(engine),
            architecture: Architecture::of_this_program(),
            restore: None,
        }
    }

    /// Starts VMs from the state that
    /// [`save_state`](capsa_core::BackendVmHandle::save_state) wrote to `file`; what the engine kept
    /// beside it must be there still, and the specification must be the one that the VM had.
    pub fn restoring(mut self, file: impl Into<PathBuf>) -> Self {
        self.restore = Some(file.into());
        self
    }

    /// A plan that this host can carry out, its files looked at.
    async fn plan(&self, spec: &VmSpec) -> Result<VzPlan> {
        let plan = VzPlan::new(spec, self.kind)?;
        let (spec, kind, architecture) = (spec.clone(), self.kind, self.architecture);
        tokio::task::spawn_blocking(move || check_files(&spec, kind, architecture))
            .await
            .map_err(|error| Error::io("the check was interrupted", io::Error::other(error)))??;
        let host = self.engine.host().await;
        let host = host.map_err(|failure| into_error(failure, self.kind))?;
        plan.check_host(&host, self.kind)?;
        Ok(plan)
    }
}

/// A failure before or during a start, as users meet it.
pub(crate) fn into_error(failure: EngineFailure, backend: BackendKind) -> Error {
    let EngineFailure { kind, reason, fix } = failure;
    match kind {
        FailureKind::Unavailable => Error::unavailable(backend, reason, fix),
        FailureKind::Unsupported => Error::unsupported(reason, backend, fix),
        _ => Error::start(BootPhase::Monitor, reason, fix),
    }
}

#[async_trait]
impl<E: Engine> HypervisorBackend for EngineBackend<E> {
    fn kind(&self) -> BackendKind {
        self.kind
    }

    fn capabilities(&self) -> BackendCapabilities {
        let mut can = vz_capabilities();
        can.in_process = self.kind == BackendKind::MacosNative;
        can
    }

    async fn probe(&self) -> Availability {
        match self.engine.host().await {
            Ok(host) => {
                let reason = format!("Virtualization.framework of macOS {}", host.macos);
                let mut found = Availability::usable(reason);
                found.version = Some(host.macos.to_string());
                found
            }
            Err(failure) => Availability::unusable(failure.reason, failure.fix),
        }
    }

    async fn check(&self, spec: &VmSpec) -> Result<()> {
        self.plan(spec).await.map(drop)
    }

    async fn launch(&self, spec: &VmSpec) -> Result<LaunchedVm> {
        let began = Instant::now();
        let plan = self.plan(spec).await?;
        let mut ports = EnginePorts::default();
        let (mut console, mut relay) = (None, None);
        if plan.console {
            let (io, carries, guest) = make_console().map_err(|error| Error::Console {
                reason: error.to_string(),
            })?;
            (console, relay) = (Some(io), Some(carries));
            ports.console = Some(guest.into());
        }
        let mut network = None;
        if plan.network.is_some() {
            let (host, guest) = frame_sockets()
                .map_err(|error| Error::io("cannot make the network's sockets", error))?;
            network = Some(host);
            ports.network = Some(guest);
        }
        let vsock = plan.vsock;
        let ballooned = plan.balloon.then_some(plan.memory_bytes);
        let start = self.engine.start(plan, ports, self.restore.clone());
        let started = match spec.start_timeout {
            None => start.await,
            Some(limit) => {
                tokio::time::timeout(limit, start)
                    .await
                    .map_err(|_| Error::Timeout {
                        operation: "the start of the virtual machine".to_owned(),
                        limit,
                        console: String::new(),
                    })?
            }
        };
        let started = started.map_err(|failure| into_error(failure, self.kind))?;
        let handle = EngineVmHandle::new(MachineParts {
            started,
            relay,
            network,
            vsock,
            ballooned,
            start_duration: began.elapsed(),
        });
        Ok(LaunchedVm {
            handle: Box::new(handle),
            console,
            warnings: Vec::new(),
        })
    }
}

fn make_console() -> io::Result<(ConsoleIo, ConsoleRelay, UnixStream)> {
    let (host, guest) = UnixStream::pair()?;
    let ports = ConsolePorts {
        serial: host,
        virtio: None,
        input: ConsoleInput::Serial,
    };
    let (relay, io) = ConsoleRelay::start(ports, true)?;
    Ok((io, relay, guest))
}
