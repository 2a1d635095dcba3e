//! What a network's process does.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use capsa_net::Engine;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::message::{self, MAGIC};

capsa_process::role! {
    /// Runs one network.
    pub(crate) static NETWORK: "network", begins MAGIC, runs serve;
}

fn serve(socket: OwnedFd) -> Result<(), Box<dyn Error>> {
    let mut buffer = Vec::new();
    let Some(descriptors) = capsa_process::receive(&socket, &mut buffer)? else {
        return Ok(());
    };
    let config = message::decode(&buffer)?;
    let control = descriptors
        .into_iter()
        .next()
        .ok_or("the network was started without its control socket")?;
    allow_many_descriptors();
    Engine::new(config, Vec::new(), UnixStream::from(control))?.run()?;
    Ok(())
}

/// Raises the limit of this process's descriptors as far as it may: a flow takes one, and the usual
/// limit is for programs that have few.
pub fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where it fails, the network goes on with what there is and says so when it runs out.
    let _ = setrlimit(Resource::Nofile, raised);
}
