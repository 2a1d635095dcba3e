//! One device, from the front end's first message to its last.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use capsa_virtio::{VirtioDevice, Worker};
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use crate::backend::Backend;

/// Why a device is not served any more, other than by the front end's going.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// This process has no descriptors or threads left.
    #[error("cannot start the device's thread: {0}")]
    Start(#[source] io::Error),
    /// The front end broke the protocol, or asked for what the device cannot do.
    #[error("the vhost-user front end sent what cannot be served: {0}")]
    Protocol(#[source] VhostError),
    /// The device's thread ended badly.
    #[error("the device's thread failed: {0}")]
    Device(#[source] io::Error),
}

/// Serves `device` to the front end at the other end of `socket`, until that is closed. The messages are answered on
/// this thread; the device runs on another one, called `name` (15 bytes are kept by the system), on which `prepare` is
/// called first.
///
/// # Errors
/// [`ServeError`]. The device is reset and gone then, too.
pub fn serve(
    socket: UnixStream,
    device: Box<dyn VirtioDevice>,
    name: &str,
    prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), ServeError> {
    let worker = Worker::spawn_with(name, prepare).map_err(ServeError::Start)?;
    let mount = worker.handle().add(device).map_err(ServeError::Start)?;
    let backend = Arc::new(Mutex::new(Backend::new(worker, mount)));
    let mut requests = BackendReqHandler::from_stream(socket, Arc::clone(&backend));
    let served = loop {
        match requests.handle_request() {
            Ok(()) => {}
            Err(VhostError::SocketRetry(_)) => {}
            Err(VhostError::Disconnected) => break Ok(()),
            Err(VhostError::SocketBroken(error))
                if error.kind() == io::ErrorKind::ConnectionReset =>
            {
                break Ok(());
            }
            Err(error) => break Err(ServeError::Protocol(error)),
        }
    };
    drop(requests);
    // Nobody else has it.
    let stopped = Arc::into_inner(backend)
        .map(|backend| {
            backend
                .into_inner()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
        })
        .map_or(Ok(()), Backend::stop)
        .map_err(ServeError::Device);
    served.and(stopped)
}
