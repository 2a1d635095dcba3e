//! Streams between programs on the host and programs in the guest.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use capsa_core::{ByteStream, Result, VsockSpec};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::handle::VmHandle;
#[cfg(unix)]
use crate::vsock_forward::VsockForward;

/// A stream to a program in the guest. Shutting down its write half is the end of the program's
/// input; what the program sends after that still arrives. Dropping it closes both directions.
pub struct VsockStream(Box<dyn ByteStream>);

impl fmt::Debug for VsockStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockStream").finish_non_exhaustive()
    }
}

impl AsyncRead for VsockStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for VsockStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// Takes the guest's connections to one vsock port of the host (context identifier 2).
///
/// Dropping it gives the port back, and the guest's further connections are refused at once; streams
/// that were accepted live on.
pub struct VsockListener {
    port: u32,
    listener: Box<dyn capsa_core::VsockListener>,
}

impl VsockListener {
    /// Waits for the next connection. Nothing is lost when the future is dropped.
    ///
    /// # Errors
    /// [`Error::Ended`](crate::Error::Ended) after the VM did.
    pub async fn accept(&mut self) -> Result<VsockStream> {
        self.listener.accept().await.map(VsockStream)
    }

    /// The port that it listens on.
    pub fn port(&self) -> u32 {
        self.port
    }
}

#[cfg(unix)]
impl VsockListener {
    /// Hands each connection of the guest to the program that listens on the Unix socket `path` of the
    /// host. Where none does, the guest's connection is closed at once. The ends of the directions are
    /// passed on each by itself.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) where `path` is no socket.
    pub async fn hand_to_unix_socket(
        self,
        path: impl Into<std::path::PathBuf>,
    ) -> Result<VsockForward> {
        VsockForward::start(self, path.into()).await
    }
}

impl fmt::Debug for VsockListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VsockListener")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

impl VmHandle {
    /// Connects to a vsock port that a program in the guest listens on. The VM was built with
    /// [`vsock`](crate::LinuxVmBuilder::vsock).
    ///
    /// While the guest has not loaded its driver yet, this waits; give it a time limit of your own
    /// where the guest may have none.
    ///
    /// # Errors
    /// - [`Error::InvalidSetting`](crate::Error::InvalidSetting) for a reserved port;
    /// - [`Error::InvalidState`](crate::Error::InvalidState) for a VM that does not run, or has no
    ///   vsock device;
    /// - [`Error::Io`](crate::Error::Io), with `ConnectionRefused`, where nobody listens;
    /// - [`Error::Ended`](crate::Error::Ended) after the VM did.
    pub async fn vsock_connect(&self, port: u32) -> Result<VsockStream> {
        VsockSpec::check_port(port)?;
        let vm = self.running("connect to a vsock port of it")?;
        vm.vsock_connect(port).await.map(VsockStream)
    }

    /// Listens on a vsock port of the host for this guest's connections. On return the guest can
    /// connect, to context identifier 2. Every VM has ports of its own.
    ///
    /// # Errors
    /// As [`vsock_connect`](Self::vsock_connect), and
    /// [`Error::InvalidState`](crate::Error::InvalidState) for a port that is taken.
    pub async fn vsock_listen(&self, port: u32) -> Result<VsockListener> {
        VsockSpec::check_port(port)?;
        let vm = self.running("listen on a vsock port of it")?;
        let listener = vm.vsock_listen(port).await?;
        Ok(VsockListener { port, listener })
    }
}
