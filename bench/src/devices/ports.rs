//! Where guests reach the host's program: a Unix socket, a vsock port, a TCP port.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result};

use crate::host_program::serve;

/// On the Unix socket `path`.
pub(crate) fn serve_unix(path: &Path) -> Result<()> {
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    serve(move || listener.accept().map(|(stream, _)| stream));
    Ok(())
}

/// On the TCP port `port` of this machine alone.
pub(crate) fn serve_tcp(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .with_context(|| format!("cannot listen on port {port}"))?;
    serve(move || {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        Ok(stream)
    });
    Ok(())
}

/// On the vsock port `port`.
#[cfg(target_os = "linux")]
pub(crate) fn serve_vsock(port: u32) -> Result<()> {
    let listener =
        vsock::listen(port).with_context(|| format!("cannot listen on the vsock port {port}"))?;
    serve(move || vsock::accept(&listener));
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn serve_vsock(_port: u32) -> Result<()> {
    anyhow::bail!("only Linux has vsock ports")
}

#[cfg(target_os = "linux")]
mod vsock {
    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    pub(super) fn listen(port: u32) -> io::Result<OwnedFd> {
        let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
        // SAFETY: no memory is passed.
        let socket = succeeded(unsafe { libc::socket(libc::AF_VSOCK, kind, 0) })?;
        // SAFETY: the descriptor was just made, and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: zeros are a value of this plain data.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
        address.svm_cid = libc::VMADDR_CID_ANY;
        address.svm_port = port;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is one of this family, with its length.
        succeeded(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
        // SAFETY: no memory is passed.
        succeeded(unsafe { libc::listen(socket.as_raw_fd(), 16) })?;
        Ok(socket)
    }

    /// A stream is a file, whatever its family.
    pub(super) fn accept(listener: &OwnedFd) -> io::Result<File> {
        let (no_address, no_len) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the address is not asked for.
        let stream = succeeded(unsafe {
            libc::accept4(listener.as_raw_fd(), no_address, no_len, libc::SOCK_CLOEXEC)
        })?;
        // SAFETY: the descriptor was just made, and nobody else has it.
        Ok(unsafe { File::from_raw_fd(stream) })
    }

    fn succeeded(result: i32) -> io::Result<i32> {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(result)
    }
}
