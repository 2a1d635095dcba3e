//! One of the host's ports, listened on.

use std::sync::Arc;

use async_trait::async_trait;
use capsa_core::{ByteStream, Result, VmStatus, VsockListener};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};

use super::ports::{Shared, ended};

pub(super) struct Listener {
    pub(super) port: u32,
    pub(super) incoming: mpsc::Receiver<UnixStream>,
    pub(super) shared: Arc<Shared>,
    pub(super) status: watch::Receiver<VmStatus>,
}

#[async_trait]
impl VsockListener for Listener {
    async fn accept(&mut self) -> Result<Box<dyn ByteStream>> {
        match self.incoming.recv().await {
            Some(stream) => Ok(Box::new(stream)),
            None => Err(ended(self.status.clone()).await),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.state().unlisten(self.port);
        self.shared.given_back.notify_one();
    }
}
