//! Writing frames to a pcapng file (draft-ietf-opsawg-pcapng).

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::GuestName;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

pub(crate) struct Capture {
    file: BufWriter<File>,
    /// The guests that are captured; each is an interface of the file by its place in here.
    guests: Vec<usize>,
    only: Option<usize>,
    written: u64,
    most: u64,
    error: Option<io::Error>,
}

fn pad(block: &mut Vec<u8>) {
    block.resize(block.len().next_multiple_of(4), 0);
}

fn option(block: &mut Vec<u8>, code: u16, value: &[u8]) {
    block.extend_from_slice(&code.to_ne_bytes());
    block.extend_from_slice(&u16::try_from(value.len()).unwrap_or_default().to_ne_bytes());
    block.extend_from_slice(value);
    pad(block);
}

impl Capture {
    /// Begins a file. `only` is the guest to be captured, if not all are.
    pub(crate) fn new(file: OwnedFd, only: Option<usize>, most: u64) -> io::Result<Self> {
        let mut capture = Self {
            file: BufWriter::with_capacity(1 << 20, File::from(file)),
            guests: Vec::new(),
            only,
            written: 0,
            most,
            error: None,
        };
        let mut body = 0x1a2b_3c4d_u32.to_ne_bytes().to_vec();
        body.extend_from_slice(&1u16.to_ne_bytes());
        body.extend_from_slice(&0u16.to_ne_bytes());
        body.extend_from_slice(&u64::MAX.to_ne_bytes());
        option(&mut body, 4, b"capsa");
        option(&mut body, 0, b"");
        capture.block(SECTION, &body)?;
        Ok(capture)
    }

    /// Adds a guest as an interface.
    pub(crate) fn add_guest(&mut self, index: usize, name: &GuestName) {
        if self.only.is_some_and(|only| only != index) {
            return;
        }
        self.guests.push(index);
        let mut body = 1u16.to_ne_bytes().to_vec(); // Ethernet
        body.extend_from_slice(&[0; 6]);
        option(&mut body, 2, name.as_str().as_bytes());
        option(&mut body, 9, &[9]); // times in nanoseconds
        option(&mut body, 0, b"");
        let result = self.block(INTERFACE, &body);
        self.remember(result);
    }

    /// Writes a frame from (or to) a guest.
    pub(crate) fn frame(&mut self, guest: usize, from_guest: bool, ethernet: &[u8]) {
        let Some(interface) = self.guests.iter().rposition(|other| *other == guest) else {
            return;
        };
        let length = u32::try_from(ethernet.len()).unwrap_or_default();
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let time = u64::try_from(time.as_nanos()).unwrap_or_default();
        let mut body = Vec::with_capacity(ethernet.len() + 48);
        body.extend_from_slice(&u32::try_from(interface).unwrap_or_default().to_ne_bytes());
        body.extend_from_slice(&((time >> 32) as u32).to_ne_bytes());
        body.extend_from_slice(&(time as u32).to_ne_bytes());
        body.extend_from_slice(&length.to_ne_bytes());
        body.extend_from_slice(&length.to_ne_bytes());
        body.extend_from_slice(ethernet);
        pad(&mut body);
        // From the guest's point of view: 2 is out of it, 1 is into it.
        let direction: u32 = if from_guest { 2 } else { 1 };
        option(&mut body, 2, &direction.to_ne_bytes());
        option(&mut body, 0, b"");
        let result = self.block(PACKET, &body);
        self.remember(result);
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 12).map_err(io::Error::other)?;
        if self.written + u64::from(length) > self.most {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it has the size that was asked for",
            ));
        }
        self.written += u64::from(length);
        self.file.write_all(&kind.to_ne_bytes())?;
        self.file.write_all(&length.to_ne_bytes())?;
        self.file.write_all(body)?;
        self.file.write_all(&length.to_ne_bytes())
    }

    fn remember(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }

    /// Writes everything to the file.
    ///
    /// # Errors
    /// When that, or an earlier write, failed; the capture is over then.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.error.take().map_or(Ok(()), Err)
    }
}
