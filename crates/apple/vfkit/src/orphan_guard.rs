//! Ends vfkit when the caller's process ends, however that comes about.
//!
//! vfkit does not watch who started it, and macOS has nothing that ends a child with its parent. So a
//! shell waits beside it on a pipe whose other end only the caller holds: an end of file without the
//! word `done` means that the caller is gone.

use std::io::Write;
use std::os::fd::OwnedFd;

use capsa_process::{Child, Program, SpawnError};
use rustix::io::fcntl_setfd;
use rustix::pipe::pipe;

const SCRIPT: &str = r#"read -r word <&3 && [ "$word" = done ] || kill -KILL "$0""#;

/// Dropping it ends what it guards.
#[derive(Debug)]
pub(crate) struct OrphanGuard {
    pipe: OwnedFd,
    _shell: Child,
}

impl OrphanGuard {
    /// Guards the process with the number `id`.
    pub(crate) fn new(id: u32) -> Result<Self, SpawnError> {
        let (reader, writer) = pipe()
            .and_then(|(reader, writer)| {
                fcntl_setfd(&reader, rustix::io::FdFlags::CLOEXEC)?;
                fcntl_setfd(&writer, rustix::io::FdFlags::CLOEXEC)?;
                Ok((reader, writer))
            })
            .map_err(|error| SpawnError {
                program: "/bin/sh".into(),
                source: error.into(),
            })?;
        let mut shell = Program::new("/bin/sh");
        shell
            .arguments(["-c", SCRIPT])
            .argument(id.to_string())
            .descriptor(3, reader);
        let shell = shell.spawn()?;
        Ok(Self {
            pipe: writer,
            _shell: shell,
        })
    }

    /// Lets go of a process that has ended and was reaped: its number may mean another one now.
    pub(crate) fn disarm(self) {
        // It fails only where the shell is gone, which then can do no harm.
        let _gone = std::fs::File::from(self.pipe).write_all(b"done\n");
    }
}
