//! Starting a daemon.

use std::env;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;

use capsa_apple_plan::{EngineFailure, FailureKind};
use capsa_process::{Program, Supervised};
use tokio::net::UnixStream;

/// What a daemon is given of the caller's environment: the framework looks for folders by them.
const VARIABLES: [&str; 4] = ["HOME", "PATH", "TMPDIR", "USER"];

/// A daemon that was just started, and the library's end of its control socket.
pub(crate) struct Daemon {
    pub(crate) process: Supervised,
    pub(crate) socket: UnixStream,
}

impl Daemon {
    /// Starts `program`. Must be called in a runtime.
    pub(crate) fn start(program: &Path) -> Result<Self, EngineFailure> {
        let failed = |error: io::Error| {
            EngineFailure::new(
                FailureKind::Framework,
                format!("{} cannot be started: {error}", program.display()),
                "check that it is an executable for this Mac, installed with the library",
            )
        };
        let (ours, theirs) = StdUnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let (errors, error_output) = io::pipe().map_err(failed)?;
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .map_err(failed)?;
        let mut command = Program::new(program);
        command
            .descriptor(0, OwnedFd::from(theirs))
            .descriptor(1, null)
            .descriptor(2, OwnedFd::from(error_output));
        for name in VARIABLES {
            if let Some(value) = env::var_os(name) {
                command.variable(name, value);
            }
        }
        let child = command.spawn().map_err(|error| failed(error.source))?;
        let process = Supervised::new(child, Some(errors.into())).map_err(failed)?;
        let socket = UnixStream::from_std(ours).map_err(failed)?;
        Ok(Self { process, socket })
    }
}
