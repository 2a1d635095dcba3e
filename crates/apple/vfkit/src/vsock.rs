//! The vsock ports: a Unix socket each in the run directory.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use capsa_core::{ByteStream, Error, Result, VmExit, VmStatus, VsockListener};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::plan::{VsockDirection, VsockWire};

type Listeners = Arc<Mutex<HashMap<u32, UnixListener>>>;

/// The host's side of the ports that were named before the start.
#[derive(Debug)]
pub(crate) struct VsockPorts {
    /// Bound before the start; out while somebody listens.
    listeners: Listeners,
    listen_ports: Vec<u32>,
    connect: HashMap<u32, PathBuf>,
}

impl VsockPorts {
    /// Binds the sockets that vfkit dials.
    pub(crate) fn bind(wires: &[VsockWire]) -> io::Result<Self> {
        let mut listeners = HashMap::new();
        let mut connect = HashMap::new();
        for wire in wires {
            match wire.direction {
                VsockDirection::GuestConnects => {
                    listeners.insert(wire.port, UnixListener::bind(&wire.socket)?);
                }
                VsockDirection::HostConnects => {
                    connect.insert(wire.port, wire.socket.clone());
                }
            }
        }
        Ok(Self {
            listen_ports: listeners.keys().copied().collect(),
            listeners: Arc::new(Mutex::new(listeners)),
            connect,
        })
    }

    /// Whether vfkit has made every socket that it listens on.
    pub(crate) fn all_there(&self) -> bool {
        self.connect.values().all(|socket| socket.exists())
    }

    pub(crate) async fn connect(&self, port: u32) -> Result<Box<dyn ByteStream>> {
        let Some(socket) = self.connect.get(&port) else {
            return Err(unnamed("connect to a vsock port", port, "connect_ports"));
        };
        let stream = UnixStream::connect(socket)
            .await
            .map_err(|error| Error::io(format!("cannot connect to vsock port {port}"), error))?;
        Ok(Box::new(stream))
    }

    pub(crate) fn listen(
        &self,
        port: u32,
        status: watch::Receiver<VmStatus>,
    ) -> Result<Box<dyn VsockListener>> {
        if !self.listen_ports.contains(&port) {
            return Err(unnamed("listen on a vsock port", port, "listen_ports"));
        }
        let listener = self.lock().remove(&port);
        let Some(listener) = listener else {
            return Err(Error::InvalidState {
                operation: "listen on a vsock port",
                state: format!("has a listener on port {port}"),
            });
        };
        Ok(Box::new(Listener {
            port,
            listener: Some(listener),
            home: self.listeners.clone(),
            status,
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, UnixListener>> {
        self.listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn unnamed(operation: &'static str, port: u32, setting: &str) -> Error {
    Error::InvalidState {
        operation,
        state: format!(
            "was started without port {port}: the vfkit backend must be told its ports before the \
             start, in {setting}"
        ),
    }
}

struct Listener {
    port: u32,
    /// `None` only while it is dropped.
    listener: Option<UnixListener>,
    home: Listeners,
    status: watch::Receiver<VmStatus>,
}

#[async_trait]
impl VsockListener for Listener {
    async fn accept(&mut self) -> Result<Box<dyn ByteStream>> {
        let Some(listener) = &self.listener else {
            return Err(Error::Ended(VmExit::Killed));
        };
        let ended = self.status.wait_for(|status| status.exit().is_some());
        tokio::select! {
            biased;
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => Ok(Box::new(stream)),
                Err(error) => {
                    Err(Error::io(format!("cannot accept on vsock port {}", self.port), error))
                }
            },
            status = ended => {
                let exit = status.ok().and_then(|status| status.exit().cloned());
                Err(Error::Ended(exit.unwrap_or(VmExit::Killed)))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.take() {
            let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
            home.insert(self.port, listener);
        }
    }
}
