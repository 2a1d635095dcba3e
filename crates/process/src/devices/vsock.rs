//! The socket device.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use capsa_core::{Error, MIN_VSOCK_CID, Result, VsockSpec};
use capsa_virtio::setup::DeviceSetup;
use capsa_virtio::vsock::{ControlSocket, ToDevice};

/// The device, its end of the control socket, and the caller's.
pub(super) fn open(spec: &VsockSpec) -> Result<(DeviceSetup, OwnedFd, ControlSocket)> {
    let (ours, theirs) = ControlSocket::pair()
        .map_err(|error| Error::io("cannot make the socket device's control socket", error))?;
    // They wait in the socket for the device: no guest is so quick that nobody listens yet.
    for port in &spec.listen_ports {
        ours.send(&ToDevice::Listen { port: *port }, None)
            .map_err(|error| {
                Error::io(
                    "cannot tell the socket device a port",
                    io::Error::other(error),
                )
            })?;
    }
    let setup = DeviceSetup::Vsock {
        guest_cid: spec.cid.unwrap_or_else(next_cid).into(),
    };
    Ok((setup, theirs.into(), ours))
}

/// An identifier that no other VM of this process was given. The addresses of a VM are its own, so
/// that others that have the same are no harm.
fn next_cid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(MIN_VSOCK_CID);
    let cid = NEXT.fetch_add(1, Ordering::Relaxed);
    // Behind the last one it starts anew.
    MIN_VSOCK_CID + (cid - MIN_VSOCK_CID) % (u32::MAX - MIN_VSOCK_CID)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cid(spec: &VsockSpec) -> u64 {
        match open(spec).unwrap().0 {
            DeviceSetup::Vsock { guest_cid } => guest_cid,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn vsock_cid_that_is_given_is_kept_and_others_differ() {
        let given = VsockSpec {
            cid: Some(77),
            ..VsockSpec::default()
        };

        assert_eq!(cid(&given), 77);
        assert_ne!(cid(&VsockSpec::default()), cid(&VsockSpec::default()));
    }
}
