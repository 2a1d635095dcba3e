use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use capsa_core::{
    BackendCapabilities, BackendKind, BackendVmHandle, BootSpec, CommandLine, ConsoleInput, Error,
    HypervisorBackend, LaunchedVm, MonitorFailure, Result, VmExit, VmSpec, VmStatus, Warning,
    WindowSize,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::console::{Console, ConsoleConfig, VmConsole};
use crate::network::{Connection, Interface, VmNetwork};
use crate::status::{StatusStream, exit_of};

/// A virtual machine: built, running, or ended.
///
/// Every method takes `&self`, so that several tasks can use one handle (in an
/// [`Arc`](std::sync::Arc)). Dropping it ends the VM and frees everything it held (processes,
/// threads, descriptors, memory), without blocking.
pub struct VmHandle {
    spec: VmSpec,
    backend: Arc<dyn HypervisorBackend>,
    status: watch::Sender<VmStatus>,
    console: Option<Arc<Console>>,
    warnings: Mutex<Vec<Warning>>,
    /// Ends a start that is going on.
    cancel_start: CancellationToken,
    running: OnceLock<Box<dyn BackendVmHandle>>,
    interface: Option<Interface>,
    network: OnceLock<VmNetwork>,
}

/// What came of [`VmHandle::stop`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopReport {
    /// How the VM ended.
    pub exit: VmExit,
    /// Whether it had to be killed because the grace period ran out.
    pub killed: bool,
}

impl VmHandle {
    /// A VM that `backend` has checked.
    pub(crate) fn new(
        spec: VmSpec,
        backend: Arc<dyn HypervisorBackend>,
        console: &ConsoleConfig,
        interface: Option<Interface>,
        warnings: Vec<Warning>,
    ) -> Self {
        let (status, watching) = watch::channel(VmStatus::Created);
        Self {
            console: spec
                .console
                .enabled
                .then(|| Console::new(console, watching)),
            spec,
            backend,
            status,
            warnings: Mutex::new(warnings),
            cancel_start: CancellationToken::new(),
            running: OnceLock::new(),
            interface,
            network: OnceLock::new(),
        }
    }

    /// Starts the VM; on return its CPUs run. A VM is started once.
    ///
    /// Dropping the future ends the start, and the VM with it.
    ///
    /// # Errors
    /// - [`Error::InvalidState`] where it was started before;
    /// - [`Error::Start`] and the errors of [`build`](crate::LinuxVmBuilder::build) where the start
    ///   fails; the VM has then ended, and what had been started is gone;
    /// - [`Error::Timeout`] where it takes longer than the `start_timeout` of the builder;
    /// - [`Error::Ended`] where [`kill`](Self::kill) came in between.
    pub async fn start(&self) -> Result<()> {
        let mut before = VmStatus::Created;
        let first = self.status.send_if_modified(|status| {
            before = status.clone();
            let first = *status == VmStatus::Created;
            if first {
                *status = VmStatus::Starting;
            }
            first
        });
        if !first {
            return Err(invalid_state("start it", &before));
        }
        let mut undo = EndUnlessStarted {
            vm: self,
            exit: VmExit::Killed,
            started: false,
        };
        let launched = tokio::select! {
            biased;
            () = self.cancel_start.cancelled() => Err(Error::Ended(VmExit::Killed)),
            launched = self.within_start_timeout(self.launch()) => launched,
        };
        match launched {
            Ok((launched, connection)) => {
                undo.started = true;
                self.run(launched, connection);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, Error::Ended(_)) {
                    undo.exit = VmExit::MonitorFailure(MonitorFailure {
                        reason: format!("the start failed: {error}"),
                        last_words: String::new(),
                    });
                }
                Err(error)
            }
        }
    }

    /// Starts the VM on its network. A place on that is had first, so that nothing runs where it
    /// cannot be had.
    async fn launch(&self) -> Result<(LaunchedVm, Option<Connection>)> {
        let Some(interface) = &self.interface else {
            return Ok((self.backend.launch(&self.spec).await?, None));
        };
        let connection = interface.join(self.spec.name.as_deref()).await?;
        let mut spec = self.spec.clone();
        tell_addresses(&mut spec, &connection)?;
        let launched = self.backend.launch(&spec).await?;
        let frames = launched.handle.take_network_socket();
        let format = launched.handle.network_frames();
        connection.connect(frames, format).await?;
        Ok((launched, Some(connection)))
    }

    async fn within_start_timeout<T>(&self, launch: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(limit) = self.spec.start_timeout else {
            return launch.await;
        };
        tokio::time::timeout(limit, launch)
            .await
            .unwrap_or_else(|_| {
                Err(Error::Timeout {
                    operation: "the start of the virtual machine".to_owned(),
                    limit,
                    console: String::new(),
                })
            })
    }

    fn run(&self, launched: LaunchedVm, connection: Option<Connection>) {
        if let Some(connection) = &connection {
            // The status says that it was never set before.
            let _ = self.network.set(connection.vm_network().clone());
        }
        let LaunchedVm {
            handle,
            console: io,
            warnings,
        } = launched;
        self.lock_warnings().extend(warnings);
        match (&self.console, io) {
            (Some(console), Some(io)) => {
                let linux = matches!(self.spec.boot, BootSpec::Linux(_));
                console.open(io, linux && self.spec.console.input == ConsoleInput::Virtio);
            }
            (Some(console), None) => console.close(),
            (None, _) => {}
        }
        let backend_status = handle.status();
        // The status says that it was never set before.
        let _ = self.running.set(handle);
        advance(&self.status, &VmStatus::Running);
        self.catch_up();
        tokio::spawn(forward_status(
            backend_status,
            self.status.clone(),
            connection,
        ));
    }

    /// Asks the guest to shut down by the power button, waits until it has, and kills it when
    /// `grace` is over. A paused VM is resumed for it. On return the VM has ended.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it is not started, [`Error::Unsupported`] where the backend
    /// has no power button: [`kill`](Self::kill) it then.
    pub async fn stop(&self, grace: Duration) -> Result<StopReport> {
        let status = self.status();
        if let VmStatus::Exited(exit) = status {
            return Ok(StopReport {
                exit,
                killed: false,
            });
        }
        let vm = self.running("stop it")?;
        if !self.capabilities().power_button {
            return Err(Error::unsupported(
                "an orderly stop",
                self.backend(),
                "end the VM with kill",
            ));
        }
        let orderly = async {
            if status == VmStatus::Paused {
                vm.resume().await?;
            }
            vm.power_button().await?;
            advance(&self.status, &VmStatus::Stopping);
            self.wait().await;
            Ok::<(), Error>(())
        };
        let pressed = tokio::time::timeout(grace, orderly).await;
        if let VmStatus::Exited(exit) = self.status() {
            return Ok(StopReport {
                exit,
                killed: false,
            });
        }
        if let Ok(Err(error)) = pressed {
            tracing::debug!(%error, "the power button failed, so the VM is killed");
        }
        self.kill().await?;
        let exit = self.wait().await;
        Ok(StopReport {
            killed: exit == VmExit::Killed,
            exit,
        })
    }

    /// Ends the VM at once. On return it has ended, by this or on its own before. A start that is
    /// going on is broken off; a VM that was not started will not be.
    ///
    /// # Errors
    /// Whatever keeps the backend from ending it.
    pub async fn kill(&self) -> Result<()> {
        self.cancel_start.cancel();
        let never_started = self.status.send_if_modified(|status| {
            let created = *status == VmStatus::Created;
            if created {
                *status = VmStatus::Exited(VmExit::Killed);
            }
            created
        });
        if never_started {
            self.close_console();
            return Ok(());
        }
        let mut status = self.status.subscribe();
        let gone = status
            .wait_for(|status| *status != VmStatus::Starting)
            .await
            .is_ok_and(|status| status.exit().is_some());
        if !gone
            && let Some(vm) = self.running.get()
            && let Err(error) = vm.kill().await
            && self.status().exit().is_none()
        {
            return Err(error);
        }
        self.wait().await;
        Ok(())
    }

    /// Holds every CPU of the VM; on return none runs.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it does not run, [`Error::Unsupported`] where the backend
    /// cannot.
    pub async fn pause(&self) -> Result<()> {
        self.pausable("pause it")?.pause().await?;
        self.catch_up();
        Ok(())
    }

    /// Lets the CPUs of a paused VM go on.
    ///
    /// # Errors
    /// As [`pause`](Self::pause).
    pub async fn resume(&self) -> Result<()> {
        self.pausable("resume it")?.resume().await?;
        self.catch_up();
        Ok(())
    }

    fn pausable(&self, operation: &'static str) -> Result<&dyn BackendVmHandle> {
        let vm = self.running(operation)?;
        if !self.capabilities().pause {
            return Err(Error::unsupported(
                "pausing",
                self.backend(),
                "let the VM run, or stop it",
            ));
        }
        Ok(vm)
    }

    /// Waits until the VM has ended and everything it held is freed. Any number of tasks may wait,
    /// before the start too; a wait that is dropped loses nothing.
    pub async fn wait(&self) -> VmExit {
        exit_of(self.status.subscribe()).await
    }

    /// Where the VM is in its life.
    pub fn status(&self) -> VmStatus {
        self.status.borrow().clone()
    }

    /// The present state and each one that follows, up to the end.
    pub fn status_stream(&self) -> StatusStream {
        StatusStream::new(self.status.subscribe())
    }

    /// The console: a reader that starts with the oldest byte that is kept, and a writer. Each call
    /// gives one with a position of its own.
    ///
    /// # Errors
    /// [`Error::Console`] where the VM was built without one.
    pub fn console(&self) -> Result<VmConsole> {
        match &self.console {
            Some(console) => Ok(VmConsole::new(console.clone())),
            None => Err(Error::Console {
                reason: "the virtual machine was built without one; do not pass \
                         ConsoleConfig::disabled()"
                    .to_owned(),
            }),
        }
    }

    /// Tells the guest the new size of the terminal behind its console. `false` where its console
    /// device cannot carry it, as a serial port cannot.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where the VM does not run.
    pub async fn resize_console(&self, size: WindowSize) -> Result<bool> {
        self.running("resize its console")?
            .resize_console(size)
            .await
    }

    /// Its part of its network: ports, policy, counters. `None` for a VM without a network, and before
    /// the start.
    pub fn network(&self) -> Option<&VmNetwork> {
        self.network.get()
    }

    /// The process that runs the guest; `None` before the start and where it is the caller's own.
    pub fn process_id(&self) -> Option<u32> {
        self.running.get()?.process_id()
    }

    /// The backend that runs it.
    pub fn backend(&self) -> BackendKind {
        self.backend.kind()
    }

    /// What that backend can honour.
    pub fn capabilities(&self) -> BackendCapabilities {
        self.backend.capabilities()
    }

    /// The settings, all defaults filled in.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// What the user should know although nothing failed; complete after the start.
    pub fn warnings(&self) -> Vec<Warning> {
        self.lock_warnings().clone()
    }

    fn lock_warnings(&self) -> std::sync::MutexGuard<'_, Vec<Warning>> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the backend took from the start to the guest's first instruction; `None` before.
    pub fn start_duration(&self) -> Option<Duration> {
        Some(self.running.get()?.start_duration())
    }

    pub(crate) fn running(&self, operation: &'static str) -> Result<&dyn BackendVmHandle> {
        let status = self.status();
        match (self.running.get(), status) {
            (_, VmStatus::Exited(exit)) => Err(Error::Ended(exit)),
            (Some(vm), _) => Ok(vm.as_ref()),
            (None, status) => Err(invalid_state(operation, &status)),
        }
    }

    /// Takes over the backend's state at once, where the caller is to see what it has just done.
    fn catch_up(&self) {
        if let Some(vm) = self.running.get() {
            let status = vm.status().borrow().clone();
            advance(&self.status, &status);
        }
    }

    fn close_console(&self) {
        if let Some(console) = &self.console {
            console.close();
        }
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        // A console that was opened ends with the VM; whoever still reads it gets all of it.
        if self.running.get().is_none() {
            advance(&self.status, &VmStatus::Exited(VmExit::Killed));
            self.close_console();
        }
    }
}

impl fmt::Debug for VmHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmHandle")
            .field("name", &self.spec.name)
            .field("backend", &self.backend())
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Ends a VM whose start failed or was given up.
struct EndUnlessStarted<'a> {
    vm: &'a VmHandle,
    exit: VmExit,
    started: bool,
}

impl Drop for EndUnlessStarted<'_> {
    fn drop(&mut self) {
        if !self.started {
            advance(&self.vm.status, &VmStatus::Exited(self.exit.clone()));
            self.vm.close_console();
        }
    }
}

fn invalid_state(operation: &'static str, status: &VmStatus) -> Error {
    let state = match status {
        VmStatus::Created => "is not started",
        VmStatus::Starting => "is being started",
        VmStatus::Exited(_) => "has ended",
        _ => "runs",
    };
    Error::InvalidState {
        operation,
        state: state.to_owned(),
    }
}

/// How far along a state is.
fn rank(status: &VmStatus) -> u8 {
    match status {
        VmStatus::Created => 0,
        VmStatus::Starting => 1,
        VmStatus::Stopping => 3,
        VmStatus::Exited(_) => 4,
        _ => 2,
    }
}

/// Goes on to `next`; never back, and never on from the end.
fn advance(status: &watch::Sender<VmStatus>, next: &VmStatus) {
    status.send_if_modified(|status| {
        let forward = rank(next) >= rank(status) && status.exit().is_none() && status != next;
        if forward {
            status.clone_from(next);
        }
        forward
    });
}

/// Adds the guest's addresses to the kernel's parameters, where the default init finds them. Others
/// get the same ones by DHCP and router advertisements.
fn tell_addresses(spec: &mut VmSpec, connection: &Connection) -> Result<()> {
    let BootSpec::Linux(boot) = &mut spec.boot else {
        return Ok(());
    };
    let mut line = CommandLine::new(&boot.command_line)?;
    for parameter in connection.kernel_parameters() {
        line.default_parameter(&parameter);
    }
    boot.command_line = line.finish()?;
    Ok(())
}

async fn forward_status(
    mut from: watch::Receiver<VmStatus>,
    to: watch::Sender<VmStatus>,
    mut connection: Option<Connection>,
) {
    loop {
        let status = from.borrow_and_update().clone();
        if status.exit().is_some()
            && let Some(connection) = connection.take()
        {
            // Its ports are free when the end is told.
            connection.leave().await;
        }
        advance(&to, &status);
        if status.exit().is_some() {
            return;
        }
        if from.changed().await.is_err() {
            let last = from.borrow_and_update().clone();
            let exit = last.exit().cloned().unwrap_or_else(|| {
                VmExit::MonitorFailure(MonitorFailure {
                    reason: "the backend lost track of it".to_owned(),
                    last_words: String::new(),
                })
            });
            if let Some(connection) = connection.take() {
                connection.leave().await;
            }
            advance(&to, &VmStatus::Exited(exit));
            return;
        }
    }
}
