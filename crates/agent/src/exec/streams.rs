//! The pipes or the terminal of a command.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use capsa_agent_protocol::exec::{ExecRequest, Terminal};
use rustix::fs::{Gid, Mode, OFlags, Uid, fcntl_getfl, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{InputModes, OptionalActions, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use super::Theirs;

/// The agent's ends; none of them blocks.
pub(super) struct Streams {
    pub(super) stdin: Option<OwnedFd>,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: Option<OwnedFd>,
    pub(super) is_terminal: bool,
    /// The terminal: a command whose terminal goes is told so by a signal, which would end one that has
    /// closed its streams and is about to end by itself.
    pub(super) terminal: Option<OwnedFd>,
}

pub(super) fn open(request: &ExecRequest, uid: u32) -> io::Result<(Streams, Theirs)> {
    match request.terminal {
        Some(size) => terminal(size, uid),
        None => pipes(request.stdin),
    }
}

fn pipes(stdin: bool) -> io::Result<(Streams, Theirs)> {
    let (their_stdin, our_stdin) = if stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        (read, Some(write))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (our_stdout, their_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
    let (our_stderr, their_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
    for stream in [&our_stdout, &our_stderr].into_iter().chain(&our_stdin) {
        no_blocking(stream)?;
    }
    Ok((
        Streams {
            stdin: our_stdin,
            stdout: our_stdout,
            stderr: Some(our_stderr),
            is_terminal: false,
            terminal: None,
        },
        Theirs {
            stdin: their_stdin,
            stdout: their_stdout,
            stderr: their_stderr,
        },
    ))
}

fn terminal(size: Terminal, uid: u32) -> io::Result<(Streams, Theirs)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let theirs = ioctl_tiocgptpeer(&ours, flags)?;
    set_size(&theirs, size)?;
    let mut modes = tcgetattr(&theirs)?;
    modes.input_modes |= InputModes::IUTF8;
    tcsetattr(&theirs, OptionalActions::Now, &modes)?;
    // So that the user can open it by name. A user who is not root could not, and need not.
    let _ = rustix::fs::fchown(&theirs, Some(Uid::from_raw(uid)), None::<Gid>);
    let _ = rustix::fs::fchmod(&theirs, Mode::from_raw_mode(0o620));
    no_blocking(&ours)?;
    Ok((
        Streams {
            stdin: Some(ours.try_clone()?),
            stdout: ours.try_clone()?,
            stderr: None,
            is_terminal: true,
            terminal: Some(ours),
        },
        Theirs {
            stdin: theirs.try_clone()?,
            stdout: theirs.try_clone()?,
            stderr: theirs,
        },
    ))
}

/// Tells a terminal its size.
pub(super) fn set_size(terminal: impl AsFd, size: Terminal) -> io::Result<()> {
    let size = Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

fn no_blocking(stream: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(
        stream,
        fcntl_getfl(stream)? | OFlags::NONBLOCK,
    )?)
}
