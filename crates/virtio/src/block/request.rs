//! Reading one request (§5.2.6).

use vm_memory::GuestAddress;

use super::SECTOR;
use super::config::{MAX_DISCARD_SECTORS, MAX_RANGES, MAX_ZEROES_SECTORS};
use crate::queue::Cursor;
use crate::{Chain, DeviceError, GuestRam, Segment};

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const HEADER: usize = 16;
const RANGE: u64 = 16;
const RANGE_UNMAP: u32 = 1;
/// Bytes of the answer to `T_GET_ID`.
pub(super) const ID_BYTES: usize = 20;

/// How a request ended, as the guest gets to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`
    IoError = 1,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported = 2,
}

/// Part of a disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// Whether its space may be given back.
    pub unmap: bool,
}

/// What the guest asks for. Every offset and length lies within the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Fill `data` from `offset` on.
    Read {
        /// In bytes.
        offset: u64,
        /// Guest memory to fill.
        data: Vec<Segment>,
    },
    /// Store `data` from `offset` on.
    Write {
        /// In bytes.
        offset: u64,
        /// Guest memory to store.
        data: Vec<Segment>,
    },
    /// Make all that was acknowledged durable.
    Flush,
    /// Fill `data` with the serial number.
    GetId {
        /// Guest memory to fill.
        data: Vec<Segment>,
    },
    /// The content of these is of no interest any more.
    Discard(Vec<Range>),
    /// Fill these with zeroes.
    WriteZeroes(Vec<Range>),
}

/// A request, and where its answer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedRequest {
    /// The request, or the answer if it is refused at once.
    pub request: Result<Request, Status>,
    /// Where the status byte goes.
    pub status: GuestAddress,
    /// Bytes of guest memory that the device writes if it succeeds, the status among them.
    pub written: u32,
    /// Bytes of data carried.
    pub data_len: u64,
}

/// Reads a request from its chain, for a disk of `capacity_sectors`.
///
/// # Errors
/// The chain has no room for a header or a status: nobody could be told then.
pub fn parse(
    chain: &Chain,
    ram: &GuestRam,
    capacity_sectors: u64,
    read_only: bool,
) -> Result<ParsedRequest, DeviceError> {
    let mut readable = Cursor::new(chain.readable());
    let mut header = [0u8; HEADER];
    readable.read_exact(ram, &mut header)?;
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let kind = u32::from_le_bytes([t0, t1, t2, t3]);
    let sector = u64::from_le_bytes(sector);

    let last = chain
        .writable()
        .last()
        .ok_or(DeviceError::Protocol("no room for a status"))?;
    let status = GuestAddress(last.addr.0 + u64::from(last.len - 1));
    let room = u64::from(chain.writable_len() - 1);
    let to_fill = || {
        Cursor::new(chain.writable())
            .segments(room)
            .collect::<Vec<_>>()
    };

    let mut data_len = 0;
    let request = match kind {
        T_IN => {
            data_len = room;
            extent(sector, room, capacity_sectors).map(|offset| Request::Read {
                offset,
                data: to_fill(),
            })
        }
        T_OUT if read_only => Err(Status::IoError),
        T_OUT => {
            data_len = readable.remaining();
            extent(sector, data_len, capacity_sectors).map(|offset| Request::Write {
                offset,
                data: readable.segments(data_len).collect(),
            })
        }
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID if room < ID_BYTES as u64 => Err(Status::IoError),
        T_GET_ID => Ok(Request::GetId { data: to_fill() }),
        T_DISCARD | T_WRITE_ZEROES if read_only => Err(Status::IoError),
        T_DISCARD => ranges(
            &mut readable,
            ram,
            capacity_sectors,
            MAX_DISCARD_SECTORS,
            false,
        )?
        .map(Request::Discard),
        T_WRITE_ZEROES => ranges(
            &mut readable,
            ram,
            capacity_sectors,
            MAX_ZEROES_SECTORS,
            true,
        )?
        .map(Request::WriteZeroes),
        _ => Err(Status::Unsupported),
    };
    let written = match &request {
        Ok(Request::Read { .. }) => chain.writable_len(),
        Ok(Request::GetId { .. }) => ID_BYTES as u32 + 1,
        _ => 1,
    };
    Ok(ParsedRequest {
        request,
        status,
        written,
        data_len,
    })
}

/// Byte offset of whole sectors inside the disk.
fn extent(sector: u64, len: u64, capacity_sectors: u64) -> Result<u64, Status> {
    let end = sector.checked_add(len / SECTOR).ok_or(Status::IoError)?;
    if !len.is_multiple_of(SECTOR) || end > capacity_sectors {
        return Err(Status::IoError);
    }
    sector.checked_mul(SECTOR).ok_or(Status::IoError)
}

/// The ranges of a discard or a write of zeroes (`struct virtio_blk_discard_write_zeroes`).
fn ranges(
    readable: &mut Cursor<'_>,
    ram: &GuestRam,
    capacity_sectors: u64,
    max_sectors: u32,
    may_unmap: bool,
) -> Result<Result<Vec<Range>, Status>, DeviceError> {
    let len = readable.remaining();
    if len == 0 || !len.is_multiple_of(RANGE) || len / RANGE > u64::from(MAX_RANGES) {
        return Ok(Err(Status::IoError));
    }
    let mut ranges = Vec::with_capacity((len / RANGE) as usize);
    for _ in 0..len / RANGE {
        let mut raw = [0u8; RANGE as usize];
        readable.read_exact(ram, &mut raw)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = raw;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        // §5.2.6.2: unknown flags, and the unmap flag of a discard, are not supported.
        let known = if may_unmap { RANGE_UNMAP } else { 0 };
        if flags & !known != 0 {
            return Ok(Err(Status::Unsupported));
        }
        if sectors > max_sectors {
            return Ok(Err(Status::IoError));
        }
        let len = u64::from(sectors) * SECTOR;
        match extent(sector, len, capacity_sectors) {
            Ok(offset) => ranges.push(Range {
                offset,
                len,
                unmap: flags & RANGE_UNMAP != 0,
            }),
            Err(status) => return Ok(Err(status)),
        }
    }
    Ok(Ok(ranges))
}
