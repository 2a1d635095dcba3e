use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use capsa_core::{ByteStream, Error, Result, VmExit, VmStatus, VsockListener};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use crate::engine::Machine;

/// A connection's descriptor as a stream of the runtime. The framework's vsock connections are
/// stream sockets of another family, which read, write and shut down alike.
pub(crate) fn stream(descriptor: OwnedFd) -> Result<Box<dyn ByteStream>> {
    let socket = StdUnixStream::from(descriptor);
    let failed = |error| Error::io("cannot use the vsock connection", error);
    socket.set_nonblocking(true).map_err(failed)?;
    Ok(Box::new(UnixStream::from_std(socket).map_err(failed)?))
}

/// Takes the guest's connections to one port.
pub(crate) struct Listener {
    port: u32,
    incoming: mpsc::Receiver<OwnedFd>,
    machine: Weak<dyn Machine>,
    status: watch::Receiver<VmStatus>,
}

impl Listener {
    pub(crate) fn new(
        port: u32,
        incoming: mpsc::Receiver<OwnedFd>,
        machine: &Arc<dyn Machine>,
        status: watch::Receiver<VmStatus>,
    ) -> Self {
        Self {
            port,
            incoming,
            machine: Arc::downgrade(machine),
            status,
        }
    }
}

#[async_trait]
impl VsockListener for Listener {
    async fn accept(&mut self) -> Result<Box<dyn ByteStream>> {
        let ended = self.status.wait_for(|status| status.exit().is_some());
        tokio::select! {
            biased;
            Some(descriptor) = self.incoming.recv() => stream(descriptor),
            status = ended => {
                let exit = status.ok().and_then(|status| status.exit().cloned());
                Err(Error::Ended(exit.unwrap_or(VmExit::Killed)))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.upgrade() {
            machine.vsock_unlisten(self.port);
        }
    }
}
