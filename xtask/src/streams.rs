//! Reading what a program writes for as long as the program runs, and not as long as something it left behind does.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

const PIECE: usize = 32 << 10;

/// Readers of streams hold the one end; dropping the other tells them that the program has ended.
pub(crate) fn ending() -> Result<(PipeReader, PipeWriter)> {
    io::pipe().context("cannot make a pipe")
}

/// Hands on what comes out of `stream` until its end or, where something else still holds the stream open, until all is
/// handed on that was in it when the program ended.
pub(crate) fn carry(
    stream: &OwnedFd,
    over: &PipeReader,
    mut hand_on: impl FnMut(&[u8]),
) -> Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let (readable, ended) = wait_readable(stream, over)?;
        if ended {
            break;
        }
        if readable {
            match read(stream, &mut buffer)? {
                0 => return Ok(()),
                count => hand_on(&buffer[..count]),
            }
        }
    }
    let mut left = rustix::io::ioctl_fionread(stream)?;
    while left > 0 {
        let piece = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        match read(stream, &mut buffer[..piece])? {
            0 => break,
            count => {
                hand_on(&buffer[..count]);
                left = left.saturating_sub(count as u64);
            }
        }
    }
    Ok(())
}

/// Waits until there is something in the stream (or its end), or until the program has ended.
fn wait_readable(stream: &OwnedFd, over: &PipeReader) -> Result<(bool, bool)> {
    let mut waiting = [
        PollFd::new(stream, PollFlags::IN),
        PollFd::from_borrowed_fd(over.as_fd(), PollFlags::IN),
    ];
    loop {
        match poll(&mut waiting, None) {
            Ok(_) => {
                return Ok((
                    !waiting[0].revents().is_empty(),
                    !waiting[1].revents().is_empty(),
                ));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for output"),
        }
    }
}

fn read(stream: &OwnedFd, buffer: &mut [u8]) -> Result<usize> {
    loop {
        match rustix::io::read(stream, &mut *buffer) {
            Ok(count) => return Ok(count),
            // What a terminal says when its last user has gone.
            Err(Errno::IO) => return Ok(0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot read what the program wrote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn stream_held_open_is_read_to_what_was_in_it_when_the_program_ended() {
        let (stream, mut still_open) = io::pipe().unwrap();
        let (over, ended) = ending().unwrap();
        still_open.write_all(b"last words").unwrap();
        drop(ended);
        let mut read = Vec::new();

        carry(&stream.into(), &over, |piece| read.extend_from_slice(piece)).unwrap();

        assert_eq!(read, b"last words");
    }

    #[test]
    fn stream_that_closes_is_read_to_its_end() {
        let (stream, mut writer) = io::pipe().unwrap();
        let (over, _ended) = ending().unwrap();
        writer.write_all(b"all").unwrap();
        drop(writer);
        let mut read = Vec::new();

        carry(&stream.into(), &over, |piece| read.extend_from_slice(piece)).unwrap();

        assert_eq!(read, b"all");
    }
}
