//! Bounded reads from a file that may be anything.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::InspectErrorKind;

/// How much of the beginning is looked at to tell what a file is: the setup header of a bzImage
/// ends before 0x280, the mark of a CD image stands at 0x8001.
const HEAD_BYTES: usize = 0x8800;

/// Opens `path`, which must be a regular file; a pipe or a device does not block it.
pub(super) fn open_regular(path: &Path) -> Result<File, InspectErrorKind> {
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => InspectErrorKind::Missing,
            _ => open_failure(path, error),
        })?;
    let kind = file
        .metadata()
        .map_err(InspectErrorKind::Unreadable)?
        .file_type();
    match not_regular(kind) {
        Some(what) => Err(InspectErrorKind::NotAFile(what)),
        None => Ok(file),
    }
}

/// A socket cannot even be opened; say so instead of giving the error number's text.
fn open_failure(path: &Path, error: io::Error) -> InspectErrorKind {
    match std::fs::metadata(path).map(|metadata| not_regular(metadata.file_type())) {
        Ok(Some(what)) => InspectErrorKind::NotAFile(what),
        _ => InspectErrorKind::Unreadable(error),
    }
}

fn not_regular(kind: std::fs::FileType) -> Option<&'static str> {
    if kind.is_file() {
        None
    } else if kind.is_dir() {
        Some("a directory")
    } else if kind.is_fifo() {
        Some("a pipe")
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_block_device() {
        Some("a block device")
    } else {
        Some("a device")
    }
}

/// A reader with a known length.
pub(super) struct Input<'a, R> {
    reader: &'a mut R,
    length: u64,
}

impl<'a, R: Read + Seek> Input<'a, R> {
    pub(super) fn new(reader: &'a mut R) -> Result<Self, InspectErrorKind> {
        let length = reader
            .seek(SeekFrom::End(0))
            .map_err(InspectErrorKind::Unreadable)?;
        Ok(Self { reader, length })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn head(&mut self) -> Result<Bytes, InspectErrorKind> {
        self.read_at(0, HEAD_BYTES)
    }

    /// Up to `length` bytes at `offset`: fewer where the file ends.
    pub(super) fn read_at(
        &mut self,
        offset: u64,
        length: usize,
    ) -> Result<Bytes, InspectErrorKind> {
        let left = self.length.saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(length);
        self.reader
            .seek(SeekFrom::Start(offset))
            .map_err(InspectErrorKind::Unreadable)?;
        let mut bytes = Vec::with_capacity(length);
        self.reader
            .by_ref()
            .take(length as u64)
            .read_to_end(&mut bytes)
            .map_err(InspectErrorKind::Unreadable)?;
        Ok(Bytes(bytes))
    }
}

/// Little-endian fields at fixed offsets; what lies beyond the end reads as `None`.
pub(super) struct Bytes(Vec<u8>);

impl Bytes {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn has(&self, offset: usize, expected: &[u8]) -> bool {
        self.0
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(expected))
    }

    pub(super) fn array<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    pub(super) fn u8(&self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    pub(super) fn u16(&self, offset: usize) -> Option<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, offset: usize) -> Option<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, offset: usize) -> Option<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }
}
