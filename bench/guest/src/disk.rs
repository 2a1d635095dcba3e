//! Requests to a disk, past this guest's page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

use crate::random::Random;

/// Bytes of a random request, and what a buffer's place must be a multiple of.
const PAGE: usize = 4096;

#[derive(Clone, Copy)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// Goes over the first `bytes` of `disk`, one request of `request` bytes at a time.
pub(crate) fn sequential(
    direction: Direction,
    disk: &str,
    bytes: u64,
    request: usize,
) -> io::Result<Duration> {
    let file = open(disk)?;
    let mut buffer = Buffer::new(request);
    let began = Instant::now();
    let mut offset = 0;
    while offset < bytes {
        match direction {
            Direction::Read => file.read_exact_at(buffer.bytes(), offset)?,
            Direction::Write => file.write_all_at(buffer.bytes(), offset)?,
        }
        offset += request as u64;
    }
    Ok(began.elapsed())
}

/// Makes `requests` of a page each all over `disk`, of which `depth` are under way at any time.
pub(crate) fn random(
    direction: Direction,
    disk: &str,
    requests: u64,
    depth: u32,
) -> io::Result<Duration> {
    let mut file = open(disk)?;
    let pages = file.seek(SeekFrom::End(0))? / PAGE as u64;
    if pages == 0 || depth == 0 {
        return Err(io::Error::other("nothing to do"));
    }
    let descriptor = types::Fd(file.as_raw_fd());
    let mut random = Random::new();
    let mut buffers: Vec<Buffer> = (0..depth).map(|_| Buffer::new(PAGE)).collect();
    let mut free: Vec<usize> = (0..buffers.len()).collect();
    let mut ring = IoUring::new(depth)?;
    let (mut begun, mut ended) = (0, 0);
    // After a failure nothing more begins, but what the kernel has is waited for: it has our buffers.
    let mut failure = None;
    let began = Instant::now();
    while ended < begun || (begun < requests && failure.is_none()) {
        while begun < requests
            && failure.is_none()
            && let Some(tag) = free.pop()
        {
            let Some(buffer) = buffers.get_mut(tag) else {
                continue;
            };
            let at = random.below(pages) * PAGE as u64;
            let pointer = buffer.bytes().as_mut_ptr();
            let entry = match direction {
                Direction::Read => opcode::Read::new(descriptor, pointer, PAGE as u32)
                    .offset(at)
                    .build(),
                Direction::Write => opcode::Write::new(descriptor, pointer, PAGE as u32)
                    .offset(at)
                    .build(),
            };
            // SAFETY: nothing else uses this buffer before its request has ended, and the loop does
            // not end before that.
            if unsafe { ring.submission().push(&entry.user_data(tag as u64)) }.is_err() {
                failure = Some(io::ErrorKind::ResourceBusy.into());
                break;
            }
            begun += 1;
        }
        if let Err(error) = ring.submit_and_wait(1) {
            failure = Some(error);
        }
        for entry in ring.completion() {
            if usize::try_from(entry.result()) != Ok(PAGE) {
                let errno = entry.result().saturating_neg();
                failure = Some(io::Error::from_raw_os_error(errno));
            }
            free.push(entry.user_data() as usize);
            ended += 1;
        }
    }
    failure.map_or_else(|| Ok(began.elapsed()), Err)
}

fn open(disk: &str) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk)
}

/// Memory at the start of a page, as requests past the page cache need it.
struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    fn new(len: usize) -> Self {
        // Nothing that could be taken for the start of another image format.
        let memory = vec![0xa5; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        let (_, rest) = self.memory.split_at_mut(self.start);
        let (bytes, _) = rest.split_at_mut(self.len);
        bytes
    }
}
