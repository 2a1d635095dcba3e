//! What the framework tells, as typed events.

use std::os::fd::{BorrowedFd, OwnedFd};

use capsa_apple_plan::MachineEnd;
use objc2::rc::Retained;
use objc2::runtime::NSObject;
use objc2::{AllocAnyThread, DefinedClass, define_class, msg_send};
use objc2_foundation::{NSError, NSObjectProtocol};
use objc2_virtualization::{
    VZNetworkDevice, VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener,
    VZVirtioSocketListenerDelegate, VZVirtualMachine, VZVirtualMachineDelegate,
};
use tokio::sync::mpsc;

use super::failure;
use crate::engine::MachineEvent;

define_class!(
    // SAFETY: NSObject has no requirements on its subclasses, and there is no Drop.
    #[unsafe(super(NSObject))]
    #[name = "CapsaVirtualMachineDelegate"]
    #[ivars = mpsc::Sender<MachineEvent>]
    pub(super) struct MachineDelegate;

    // SAFETY: NSObjectProtocol has no requirements.
    unsafe impl NSObjectProtocol for MachineDelegate {}

    // SAFETY: the methods have the protocol's selectors and types.
    unsafe impl VZVirtualMachineDelegate for MachineDelegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _virtual_machine: &VZVirtualMachine) {
            self.tell(MachineEvent::Ended(MachineEnd::PoweredOff));
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _virtual_machine: &VZVirtualMachine, error: &NSError) {
            let reason = failure(error).reason;
            self.tell(MachineEvent::Ended(MachineEnd::Failed(reason)));
        }

        #[unsafe(method(virtualMachine:networkDevice:attachmentWasDisconnectedWithError:))]
        fn network_was_disconnected(
            &self,
            _virtual_machine: &VZVirtualMachine,
            _network_device: &VZNetworkDevice,
            error: &NSError,
        ) {
            self.tell(MachineEvent::NetworkLost(failure(error).reason));
        }
    }
);

impl MachineDelegate {
    pub(super) fn new(events: mpsc::Sender<MachineEvent>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(events);
        // SAFETY: NSObject's init takes nothing and returns the object.
        unsafe { msg_send![super(this), init] }
    }

    fn tell(&self, event: MachineEvent) {
        if let Err(error) = self.ivars().try_send(event) {
            tracing::warn!(%error, "an event of a virtual machine was lost");
        }
    }
}

define_class!(
    // SAFETY: NSObject has no requirements on its subclasses, and there is no Drop.
    #[unsafe(super(NSObject))]
    #[name = "CapsaVsockListenerDelegate"]
    #[ivars = mpsc::Sender<OwnedFd>]
    pub(super) struct ListenerDelegate;

    // SAFETY: NSObjectProtocol has no requirements.
    unsafe impl NSObjectProtocol for ListenerDelegate {}

    // SAFETY: the method has the protocol's selector and types.
    unsafe impl VZVirtioSocketListenerDelegate for ListenerDelegate {
        #[unsafe(method(listener:shouldAcceptNewConnection:fromSocketDevice:))]
        fn should_accept(
            &self,
            _listener: &VZVirtioSocketListener,
            connection: &VZVirtioSocketConnection,
            _socket_device: &VZVirtioSocketDevice,
        ) -> bool {
            // Beyond the backlog, connections are refused.
            descriptor_of(connection).is_some_and(|stream| self.ivars().try_send(stream).is_ok())
        }
    }
);

impl ListenerDelegate {
    pub(super) fn new(incoming: mpsc::Sender<OwnedFd>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(incoming);
        // SAFETY: NSObject's init takes nothing and returns the object.
        unsafe { msg_send![super(this), init] }
    }
}

/// A descriptor of one's own for a connection: the object closes its own when it goes.
pub(super) fn descriptor_of(connection: &VZVirtioSocketConnection) -> Option<OwnedFd> {
    // SAFETY: a getter.
    let descriptor = unsafe { connection.fileDescriptor() };
    if descriptor < 0 {
        return None;
    }
    // SAFETY: the connection keeps the descriptor open until this call has ended.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    borrowed.try_clone_to_owned().ok()
}
