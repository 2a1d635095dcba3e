//! Telling formats by their content.

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

/// An image format that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ImageFormat {
    /// The file's bytes are the disk's.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// First bytes of a qcow2 image.
pub(super) const QCOW_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Formats that are neither, at fixed places. A guest could not use them as a raw disk, so they are refused by name.
const OTHERS: [(usize, &[u8], &str); 7] = [
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0, b"QED\0", "QED"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
];

/// Tells the format from the first bytes of an image.
///
/// # Errors
/// The name of a format that cannot be used.
pub fn probe(start: &[u8]) -> Result<ImageFormat, &'static str> {
    if start.starts_with(&QCOW_MAGIC) {
        // Version 1 is another format, long out of use.
        return match start.get(4..8) {
            Some([0, 0, 0, 1]) => Err("QCOW version 1"),
            _ => Ok(ImageFormat::Qcow2),
        };
    }
    for (at, magic, name) in OTHERS {
        if start.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(name);
        }
    }
    Ok(ImageFormat::Raw)
}

/// Reads up to `buf.len()` bytes from the start of a file.
pub(super) fn read_start(file: &std::fs::File, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    loop {
        let (_, rest) = buf.split_at_mut(filled);
        match file.read_at(rest, filled as u64) {
            Ok(0) => return Ok(filled),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
