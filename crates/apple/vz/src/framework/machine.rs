//! One VM of the framework, on its queue.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use block2::{DynBlock, RcBlock};
use capsa_apple_plan::{EngineFailure, FailureKind, MachineEnd, VzPlan};
use objc2::rc::Retained;
use objc2::runtime::ProtocolObject;
use objc2::{AllocAnyThread, available};
use objc2_foundation::{NSError, NSString, NSURL};
use objc2_virtualization::{
    VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener,
    VZVirtioTraditionalMemoryBalloonDevice, VZVirtualMachine,
};
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot};

use super::configuration::{Configuration, configure};
use super::delegates::{ListenerDelegate, MachineDelegate, descriptor_of};
use super::queue::OnQueue;
use super::{failure, identity};
use crate::engine::{EnginePorts, Machine, MachineEvent, VSOCK_BACKLOG};

type Answer<R> = oneshot::Sender<Result<R, EngineFailure>>;
type ErrorHandler = DynBlock<dyn Fn(*mut NSError)>;
type Listener = (Retained<VZVirtioSocketListener>, Retained<ListenerDelegate>);

/// What lives on the queue.
struct Objects {
    machine: Retained<VZVirtualMachine>,
    /// The machine does not hold it.
    _delegate: Retained<MachineDelegate>,
    listeners: RefCell<HashMap<u32, Listener>>,
    _temporary: Option<TempDir>,
    identity: Option<Vec<u8>>,
}

impl Drop for Objects {
    /// Ends a VM that still runs. Runs on the queue.
    fn drop(&mut self) {
        // SAFETY: on the machine's queue; the block keeps the machine until it has stopped.
        unsafe {
            if self.machine.canStop() {
                let machine = self.machine.clone();
                let stopped = RcBlock::new(move |_error: *mut NSError| {
                    let _kept = &machine;
                });
                self.machine.stopWithCompletionHandler(&stopped);
            }
        }
    }
}

impl Objects {
    fn socket_device(&self) -> Result<Retained<VZVirtioSocketDevice>, EngineFailure> {
        // SAFETY: on the machine's queue.
        let devices = unsafe { self.machine.socketDevices() };
        let device = devices.firstObject().map(|device| device.downcast());
        match device {
            Some(Ok(device)) => Ok(device),
            _ => Err(state("the virtual machine has no vsock device")),
        }
    }
}

fn state(reason: &str) -> EngineFailure {
    EngineFailure::new(
        FailureKind::State,
        reason,
        "follow the status of the virtual machine",
    )
}

/// A VM. Dropping it ends it.
pub(super) struct VzMachine {
    objects: Arc<OnQueue<Objects>>,
    events: mpsc::Sender<MachineEvent>,
}

/// A completion handler that answers once.
fn answering(answer: Answer<()>) -> RcBlock<dyn Fn(*mut NSError)> {
    let answer = Cell::new(Some(answer));
    RcBlock::new(move |error: *mut NSError| {
        // SAFETY: the framework gives null or an error that lives through the call.
        let result = match unsafe { error.as_ref() } {
            None => Ok(()),
            Some(error) => Err(failure(error)),
        };
        if let Some(answer) = answer.take() {
            // Whoever asked may have lost patience.
            let _unheard = answer.send(result);
        }
    })
}

impl VzMachine {
    /// Makes the VM's objects, those of the VM whose state is in `restore` where it is given; nothing
    /// runs yet.
    pub(super) async fn build(
        plan: VzPlan,
        ports: EnginePorts,
        restore: Option<PathBuf>,
        events: mpsc::Sender<MachineEvent>,
    ) -> Result<Self, EngineFailure> {
        let told = events.clone();
        let objects = OnQueue::build("capsa.vm", move |queue| {
            let Configuration {
                objects,
                temporary,
                identity,
            } = configure(&plan, ports, restore.as_deref())?;
            let delegate = MachineDelegate::new(told);
            // SAFETY: the configuration was validated, and this runs on the queue.
            let machine = unsafe {
                let machine = VZVirtualMachine::initWithConfiguration_queue(
                    VZVirtualMachine::alloc(),
                    &objects,
                    queue,
                );
                machine.setDelegate(Some(ProtocolObject::from_ref(&*delegate)));
                machine
            };
            Ok(Objects {
                machine,
                _delegate: delegate,
                listeners: RefCell::new(HashMap::new()),
                _temporary: temporary,
                identity,
            })
        })
        .await?;
        Ok(Self { objects, events })
    }

    pub(super) async fn start(&self) -> Result<(), EngineFailure> {
        self.complete(|machine, done| {
            // SAFETY: on the machine's queue.
            unsafe { machine.startWithCompletionHandler(done) };
        })
        .await
    }

    /// Goes on from a saved state.
    pub(super) async fn restore(&self, file: PathBuf) -> Result<(), EngineFailure> {
        needs_saved_states()?;
        self.complete(move |machine, done| {
            // SAFETY: on the machine's queue, on a macOS that has it.
            unsafe {
                machine.restoreMachineStateFromURL_completionHandler(&file_url(&file), done);
            }
        })
        .await?;
        self.resume().await
    }

    /// Asks for something that has a completion handler.
    async fn complete(
        &self,
        ask: impl FnOnce(&VZVirtualMachine, &ErrorHandler) + Send + 'static,
    ) -> Result<(), EngineFailure> {
        self.objects
            .ask(move |objects, answer| ask(&objects.machine, &answering(answer)))
            .await
    }
}

fn file_url(path: &Path) -> Retained<NSURL> {
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}

fn needs_saved_states() -> Result<(), EngineFailure> {
    if available!(macos = 14.0) {
        return Ok(());
    }
    Err(EngineFailure::new(
        FailureKind::Unsupported,
        "saved states",
        "update to macOS 14 or newer",
    ))
}

#[async_trait]
impl Machine for VzMachine {
    async fn power_button(&self) -> Result<(), EngineFailure> {
        self.objects
            .ask(|objects, answer: Answer<()>| {
                // SAFETY: on the machine's queue.
                let asked = unsafe { objects.machine.requestStopWithError() };
                let _unheard = answer.send(asked.map_err(|error| failure(&error)));
            })
            .await
    }

    async fn kill(&self) -> Result<(), EngineFailure> {
        self.complete(|machine, done| {
            // SAFETY: on the machine's queue.
            unsafe { machine.stopWithCompletionHandler(done) };
        })
        .await?;
        // The delegate is not told of this end.
        let _gone = (self.events)
            .send(MachineEvent::Ended(MachineEnd::Killed))
            .await;
        Ok(())
    }

    async fn pause(&self) -> Result<(), EngineFailure> {
        self.complete(|machine, done| {
            // SAFETY: on the machine's queue.
            unsafe { machine.pauseWithCompletionHandler(done) };
        })
        .await
    }

    async fn resume(&self) -> Result<(), EngineFailure> {
        self.complete(|machine, done| {
            // SAFETY: on the machine's queue.
            unsafe { machine.resumeWithCompletionHandler(done) };
        })
        .await
    }

    async fn save_state(&self, file: &Path) -> Result<(), EngineFailure> {
        needs_saved_states()?;
        let state = file.to_owned();
        self.complete(move |machine, done| {
            // SAFETY: on the machine's queue, on a macOS that has it.
            unsafe { machine.saveMachineStateToURL_completionHandler(&file_url(&state), done) };
        })
        .await?;
        let file = file.to_owned();
        self.objects
            .ask(move |objects, answer: Answer<()>| {
                let identity = objects.identity.as_deref().unwrap_or_default();
                let _unheard = answer.send(identity::write(&file, identity));
            })
            .await
    }

    async fn vsock_connect(&self, port: u32) -> Result<OwnedFd, EngineFailure> {
        self.objects
            .ask(move |objects, answer: Answer<OwnedFd>| {
                let device = match objects.socket_device() {
                    Ok(device) => device,
                    Err(failure) => {
                        let _unheard = answer.send(Err(failure));
                        return;
                    }
                };
                let answer = Cell::new(Some(answer));
                let done = RcBlock::new(
                    move |connection: *mut VZVirtioSocketConnection, error: *mut NSError| {
                        // SAFETY: each is null or an object that lives through the call.
                        let (connection, error) = unsafe { (connection.as_ref(), error.as_ref()) };
                        let result = match (connection.and_then(descriptor_of), error) {
                            (Some(stream), _) => Ok(stream),
                            (None, Some(error)) => Err(EngineFailure {
                                kind: FailureKind::NobodyListens,
                                ..failure(error)
                            }),
                            (None, None) => Err(state("the connection was closed at once")),
                        };
                        if let Some(answer) = answer.take() {
                            let _unheard = answer.send(result);
                        }
                    },
                );
                // SAFETY: on the machine's queue.
                unsafe { device.connectToPort_completionHandler(port, &done) };
            })
            .await
    }

    async fn vsock_listen(&self, port: u32) -> Result<mpsc::Receiver<OwnedFd>, EngineFailure> {
        let (sender, incoming) = mpsc::channel(VSOCK_BACKLOG);
        self.objects
            .ask(move |objects, answer: Answer<()>| {
                let _unheard = answer.send(listen(objects, port, sender));
            })
            .await?;
        Ok(incoming)
    }

    fn vsock_unlisten(&self, port: u32) {
        self.objects.run(move |objects| {
            if objects.listeners.borrow_mut().remove(&port).is_some()
                && let Ok(device) = objects.socket_device()
            {
                // SAFETY: on the machine's queue.
                unsafe { device.removeSocketListenerForPort(port) };
            }
        });
    }

    async fn set_balloon(&self, bytes: u64) -> Result<(), EngineFailure> {
        self.objects
            .ask(move |objects, answer: Answer<()>| {
                // SAFETY: on the machine's queue.
                let devices = unsafe { objects.machine.memoryBalloonDevices() };
                let balloon = (devices.firstObject())
                    .map(|device| device.downcast::<VZVirtioTraditionalMemoryBalloonDevice>());
                let result = match balloon {
                    Some(Ok(balloon)) => {
                        // SAFETY: on the machine's queue.
                        unsafe { balloon.setTargetVirtualMachineMemorySize(bytes) };
                        Ok(())
                    }
                    _ => Err(state("the virtual machine has no memory balloon")),
                };
                let _unheard = answer.send(result);
            })
            .await
    }
}

/// Listens on a port of the host. Runs on the queue.
fn listen(
    objects: &Objects,
    port: u32,
    sender: mpsc::Sender<OwnedFd>,
) -> Result<(), EngineFailure> {
    let device = objects.socket_device()?;
    let mut listeners = objects.listeners.borrow_mut();
    if listeners.contains_key(&port) {
        return Err(state(&format!("somebody listens on vsock port {port}")));
    }
    let delegate = ListenerDelegate::new(sender);
    // SAFETY: on the machine's queue; the listener and its delegate are held until they are removed.
    let listener = unsafe {
        let listener = VZVirtioSocketListener::new();
        listener.setDelegate(Some(ProtocolObject::from_ref(&*delegate)));
        device.setSocketListener_forPort(&listener, port);
        listener
    };
    listeners.insert(port, (listener, delegate));
    Ok(())
}
