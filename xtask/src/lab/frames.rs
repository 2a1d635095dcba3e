//! What the lab's two ends say to each other over one virtio-serial port.
//!
//! A frame is one byte of kind, four bytes of length (little endian) and that many bytes. Standard input, output and error
//! travel in frames of their own, so they stay apart and keep every byte.

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Larger frames are never sent: a larger length means that the two ends disagree.
const LARGEST: usize = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// From the machine, first of all: it is up.
    Ready,
    /// To the machine, once: a [`Job`] as JSON.
    Start(Vec<u8>),
    /// To the machine: the command's standard input, and its end.
    Input(Vec<u8>),
    InputEnd,
    /// From the machine: what the command wrote.
    Output(Vec<u8>),
    Error(Vec<u8>),
    /// From the machine, last of all: the exit status, 128 + n after death by signal n.
    Exited(u8),
    /// From the machine, instead: the command could not be started, and the exit status that says so.
    Refused(u8, String),
}

/// The command to run inside, and the surroundings it gets.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) program: Vec<u8>,
    pub(crate) arguments: Vec<Vec<u8>>,
    pub(crate) directory: Vec<u8>,
    pub(crate) environment: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) open_files: Option<u64>,
    /// The host's time of day, as the time since 1970. Files made by the host would else come from the future.
    pub(crate) time: Duration,
    /// Rows and columns, where the command gets a terminal.
    pub(crate) terminal: Option<(u16, u16)>,
}

impl Frame {
    pub(crate) fn write_to(&self, mut port: impl Write) -> io::Result<()> {
        let status;
        let (kind, parts): (u8, [&[u8]; 2]) = match self {
            Frame::Ready => (1, [&[], &[]]),
            Frame::Start(job) => (2, [job, &[]]),
            Frame::Input(data) => (3, [data, &[]]),
            Frame::InputEnd => (4, [&[], &[]]),
            Frame::Output(data) => (5, [data, &[]]),
            Frame::Error(data) => (6, [data, &[]]),
            Frame::Exited(code) => {
                status = [*code];
                (7, [&status, &[]])
            }
            Frame::Refused(code, message) => {
                status = [*code];
                (8, [&status, message.as_bytes()])
            }
        };
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let length = u32::try_from(length)
            .ok()
            .filter(|&length| length as usize <= LARGEST)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "too much for one frame"))?;
        // One write where possible: each is a round trip to the emulator.
        let mut bytes = Vec::with_capacity(5 + length as usize);
        bytes.push(kind);
        bytes.extend_from_slice(&length.to_le_bytes());
        for part in parts {
            bytes.extend_from_slice(part);
        }
        port.write_all(&bytes)
    }

    /// The next frame, or `None` where the other end has gone between two frames.
    pub(crate) fn read_from(mut port: impl Read) -> io::Result<Option<Frame>> {
        let mut kind = [0];
        loop {
            match port.read(&mut kind) {
                Ok(0) => return Ok(None),
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut length = [0; 4];
        port.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > LARGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame larger than any that is sent",
            ));
        }
        let mut data = vec![0; length];
        port.read_exact(&mut data)?;
        let frame = match (kind, data.split_first()) {
            ([1], _) => Frame::Ready,
            ([2], _) => Frame::Start(data),
            ([3], _) => Frame::Input(data),
            ([4], _) => Frame::InputEnd,
            ([5], _) => Frame::Output(data),
            ([6], _) => Frame::Error(data),
            ([7], Some((code, _))) => Frame::Exited(*code),
            ([8], Some((code, message))) => {
                Frame::Refused(*code, String::from_utf8_lossy(message).into_owned())
            }
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a frame of an unknown kind",
                ));
            }
        };
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_written_in_a_row_are_read_back_the_same() {
        let frames = [
            Frame::Ready,
            Frame::Start(b"{}".to_vec()),
            Frame::Input(vec![0, 255, 10]),
            Frame::InputEnd,
            Frame::Output(vec![7; 70_000]),
            Frame::Error(vec![]),
            Frame::Refused(127, "no such command".to_owned()),
            Frame::Exited(137),
        ];
        let mut wire = Vec::new();

        for frame in &frames {
            frame.write_to(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        let mut read = Vec::new();
        while let Some(frame) = Frame::read_from(&mut rest).unwrap() {
            read.push(frame);
        }

        assert_eq!(read, frames);
    }

    #[test]
    fn frame_with_an_absurd_length_is_refused() {
        let wire = [5, 255, 255, 255, 255];

        let error = Frame::read_from(wire.as_slice()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn frame_cut_short_is_an_error_and_not_an_end() {
        let wire = [5, 4, 0, 0, 0, b'a'];

        let error = Frame::read_from(wire.as_slice()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
