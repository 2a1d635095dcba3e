//! A vsock port whose connections go to a Unix socket of the host.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use capsa_core::{Error, Result};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::UnixStream;
use tokio::task::{JoinHandle, JoinSet};

use crate::vsock::{VsockListener, VsockStream};

/// How much of a connection is held in each direction.
const HELD_BYTES: usize = 64 << 10;

/// A vsock port whose connections go to a Unix socket of the host. Dropping it ends the connections and
/// gives the port back, soon; [`stop`](Self::stop) waits until that is done.
#[derive(Debug)]
pub struct VsockForward {
    port: u32,
    path: PathBuf,
    task: JoinHandle<()>,
}

impl VsockForward {
    pub(crate) async fn start(listener: VsockListener, path: PathBuf) -> Result<Self> {
        let found = std::fs::metadata(&path);
        let wrong = match found {
            Ok(metadata) if metadata.file_type().is_socket() => None,
            Ok(_) => Some("it is not a socket".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = wrong {
            return Err(Error::file(
                "Unix socket for a vsock port",
                &path,
                reason,
                "start the program that listens on it first",
            ));
        }
        Ok(Self {
            port: listener.port(),
            task: tokio::spawn(serve(listener, path.clone())),
            path,
        })
    }

    /// Ends the connections and gives the port back.
    pub async fn stop(mut self) {
        self.task.abort();
        // It was aborted, or had ended by itself.
        let _ended = (&mut self.task).await;
    }

    /// The port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for VsockForward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// To the end of the VM.
async fn serve(mut listener: VsockListener, path: PathBuf) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(guest) => {
                    connections.spawn(carry(guest, path.clone()));
                }
                Err(_) => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    // What the guest has said before its end still arrives.
    while connections.join_next().await.is_some() {}
}

async fn carry(mut guest: VsockStream, path: PathBuf) {
    let carried = async {
        let mut host = UnixStream::connect(&path).await?;
        copy_bidirectional_with_sizes(&mut guest, &mut host, HELD_BYTES, HELD_BYTES).await
    };
    if let Err(error) = carried.await {
        tracing::debug!(%error, path = %path.display(), "a connection to a Unix socket failed");
    }
}
