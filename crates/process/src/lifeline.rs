use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::Child;

/// Ends a child when the caller ends, however that comes about, for children that do not watch the
/// caller themselves.
///
/// The child is given the reading end of a pipe that nobody writes to. The kernel sends `SIGKILL`
/// to the child when the other end is closed, that is when this is dropped or the caller's process
/// is gone (`O_ASYNC`, `F_SETSIG` and `F_SETOWN` in fcntl(2)). `PR_SET_PDEATHSIG` would instead
/// follow the *thread* that started the child, and threads of a runtime's pool end early.
#[derive(Debug)]
pub struct Lifeline {
    held: OwnedFd,
    watched: OwnedFd,
}

impl Lifeline {
    /// Makes one; the second part goes to the child, under any number.
    ///
    /// # Errors
    /// Where no pipe can be made.
    pub fn new() -> io::Result<(Self, OwnedFd)> {
        let (watched, held) = pipe_with(PipeFlags::CLOEXEC)?;
        let handed = watched.try_clone()?;
        Ok((Self { held, watched }, handed))
    }

    /// Ties `child`, which was given the reading end, to the returned descriptor: when that is
    /// closed, the child is killed.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn tie(self, child: &Child) -> io::Result<OwnedFd> {
        let Self { held, watched } = self;
        let pid = child.process().pid().as_raw_nonzero().get();
        for (command, value) in [(libc::F_SETOWN, pid), (F_SETSIG, libc::SIGKILL)] {
            // SAFETY: both commands take an integer and change only this open file.
            if unsafe { libc::fcntl(watched.as_raw_fd(), command, value) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // The flag belongs to the open file, which the child shares.
        fcntl_setfl(
            &watched,
            fcntl_getfl(&watched)? | OFlags::from_bits_retain(O_ASYNC),
        )?;
        Ok(held)
    }
}

const O_ASYNC: u32 = libc::O_ASYNC.cast_unsigned();
/// `asm-generic/fcntl.h`; the libc crate does not have it for every Linux target.
const F_SETSIG: libc::c_int = 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Program, Supervised};

    #[tokio::test]
    async fn dropping_the_lifeline_kills_the_child() {
        // Arrange: a child that would live for ever.
        let (lifeline, handed) = Lifeline::new().unwrap();
        let mut program = Program::new("/bin/sleep");
        program.argument("infinity").descriptor(7, handed);
        let child = program.spawn().unwrap();
        let held = lifeline.tie(&child).unwrap();
        let supervised = Supervised::new(child, None).unwrap();

        // Act
        drop(held);
        let end = supervised.ended().await;

        // Assert
        assert_eq!(end.reason, crate::ExitReason::Signal(libc::SIGKILL));
    }
}
