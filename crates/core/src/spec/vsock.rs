//! The socket device of a VM.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The smallest vsock context identifier of a guest.
pub const MIN_VSOCK_CID: u32 = 3;
/// The vsock ports that belong to Capsa itself, for its agent in the guest.
pub const RESERVED_VSOCK_PORTS: RangeInclusive<u32> = 52_100..=52_199;

/// The socket device between host and guest (virtio-vsock).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockSpec {
    /// The guest's context identifier, 3 to 4,294,967,294; `None` for one that is free.
    pub cid: Option<u32>,
    /// Ports of the host that the guest connects to. What connects to them waits for the listener,
    /// however early it comes. Only the vfkit backend must know all of them before the start; the
    /// others listen on any port at any time.
    #[serde(default)]
    pub listen_ports: Vec<u32>,
    /// Ports of the guest that the host connects to. Only the vfkit backend must know them before
    /// the start; the others connect to any port at any time.
    #[serde(default)]
    pub connect_ports: Vec<u32>,
}

impl VsockSpec {
    /// Checks identifier and ports.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn check(&self) -> Result<()> {
        if let Some(cid) = self.cid
            && !(MIN_VSOCK_CID..u32::MAX).contains(&cid)
        {
            return Err(Error::invalid_setting(
                "vsock",
                format!("context identifier {cid}"),
                "it is reserved",
                format!(
                    "use one from {MIN_VSOCK_CID} to {}, or None for any",
                    u32::MAX - 1
                ),
            ));
        }
        // Capsa's own ports may be named here: a sandbox does. What they lead to is guarded by
        // those who connect and listen.
        let mut ports = self.listen_ports.iter().chain(&self.connect_ports);
        match ports.find(|port| **port == u32::MAX) {
            Some(port) => Self::check_port(*port),
            None => Ok(()),
        }
    }

    /// Checks a port of either side that a program of the user's wants to use.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for one of [`RESERVED_VSOCK_PORTS`], and for 4,294,967,295, which
    /// means "any port".
    pub fn check_port(port: u32) -> Result<()> {
        let reason = match port {
            u32::MAX => "it means \"any port\"",
            port if RESERVED_VSOCK_PORTS.contains(&port) => "it belongs to Capsa's own agent",
            _ => return Ok(()),
        };
        Err(Error::invalid_setting(
            "vsock port",
            port,
            reason,
            "use another one, such as 5000",
        ))
    }
}
