//! The monitor: what runs a machine on behalf of a library in another process, or, for debugging, on
//! a thread of the caller's.

mod confinement;
mod disks;
mod memory_reports;
mod serve;

use std::error::Error;
use std::os::fd::OwnedFd;

use rustix::process::{Resource, getrlimit, setrlimit};

use crate::protocol;

pub(crate) use serve::{Place, serve};

capsa_process::role! {
    /// What the library starts its own executable as: one monitor a machine.
    pub(crate) static MONITOR: "monitor", begins &protocol::MAGIC, runs run;
}

fn run(socket: OwnedFd) -> Result<(), Box<dyn Error>> {
    raise_descriptor_limit();
    // A guest must not wait for ever for a device whose thread is gone.
    capsa_process::end_process_on_panic();
    Ok(serve(socket, Place::OwnProcess)?)
}

/// Each file of a share that the guest knows takes a descriptor, and so does each connection.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}
