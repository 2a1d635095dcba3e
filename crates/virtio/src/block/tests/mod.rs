mod engines;
mod faults;
mod front_end;

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use super::backend::RawDisk;
use super::*;
use crate::testing::{Buffer, Harness};

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut range = sector.to_le_bytes().to_vec();
    range.extend(sectors.to_le_bytes());
    range.extend(flags.to_le_bytes());
    range
}

fn file_of(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}

/// A disk that a test talks to as a guest does.
struct Disk {
    harness: Harness,
    handle: BlockHandle,
}

impl Disk {
    fn new(backend: Arc<dyn Backend>, options: BlockOptions) -> Self {
        let (block, handle) = Block::new(backend, options).unwrap();
        Self {
            harness: Harness::started(block),
            handle,
        }
    }

    fn raw(content: &[u8]) -> Self {
        let backend = RawDisk::new(file_of(content), false).unwrap();
        Self::new(Arc::new(backend), BlockOptions::default())
    }

    /// Offers a request whose data the device fills, in two buffers.
    fn offer_in(&mut self, kind: u32, sector: u64, len: u32) {
        let header = header(kind, sector);
        let buffers = [
            Buffer::Readable(&header),
            Buffer::Writable(len / 2),
            Buffer::Writable(len - len / 2),
            Buffer::Writable(1),
        ];
        self.harness.queues[0].add(&buffers);
    }

    fn offer_out(&mut self, kind: u32, sector: u64, data: &[u8]) {
        let header = header(kind, sector);
        let (first, second) = data.split_at(data.len() / 2);
        let buffers = [
            Buffer::Readable(&header),
            Buffer::Readable(first),
            Buffer::Readable(second),
            Buffer::Writable(1),
        ];
        self.harness.queues[0].add(&buffers);
    }

    /// Waits for the next answer: status, written bytes, data.
    fn answer(&mut self) -> (u8, u32, Vec<u8>) {
        self.harness.mount.kick(0);
        loop {
            if let Some((offered, written)) = self.harness.queues[0].take_used() {
                let queue = &self.harness.queues[0];
                let status = *offered.buffers.last().unwrap();
                let data = &offered.buffers[1..3];
                let data = data
                    .iter()
                    .flat_map(|&(at, len)| queue.read(at, len as usize));
                return (queue.read(status.0, 1)[0], written, data.collect());
            }
            self.harness.wait();
        }
    }

    fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        self.offer_in(T_IN, sector, len);
        let (status, _, data) = self.answer();
        (status, data)
    }

    fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.offer_out(T_OUT, sector, data);
        self.answer().0
    }

    fn flush(&mut self) -> u8 {
        self.offer_out(T_FLUSH, 0, b"");
        self.answer().0
    }

    fn ranges(&mut self, kind: u32, ranges: &[Vec<u8>]) -> u8 {
        self.offer_out(kind, 0, &ranges.concat());
        self.answer().0
    }

    fn config(&self, offset: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.harness.mount.read_config(offset, &mut data[..len]);
        u64::from_le_bytes(data)
    }
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}
