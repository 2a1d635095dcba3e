//! bzImage (Documentation/arch/x86/boot.rst in Linux: "The Real-Mode Kernel Header").

use std::fmt;
use std::io::{Read, Seek};

use super::input::{Bytes, Input};
use super::{InspectErrorKind, KernelFormat, KernelImage, version};
use crate::Arch;

const WHAT: &str = "bzImage";
const SECTOR_BYTES: u64 = 512;
/// The first protocol with `xloadflags`, which tells whether there is a 64-bit entry (Linux 3.8).
const OLDEST_PROTOCOL: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const KERNEL_64: u16 = 1 << 0;

const SETUP_SECTORS: usize = 0x1f1;
const PROTECTED_PARAGRAPHS: usize = 0x1f4;
const BOOT_FLAG: usize = 0x1fe;
const MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const VERSION_POINTER: usize = 0x20e;
const LOAD_FLAGS: usize = 0x211;
const EXTENDED_LOAD_FLAGS: usize = 0x236;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
const HEADER_END: usize = 0x268;

/// How the kernel proper is packed in a bzImage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA.
    Lzma,
    /// XZ.
    Xz,
    /// LZO.
    Lzo,
    /// LZ4, legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
    /// In a way that is none of these; the kernel's own unpacker may know it.
    Unknown,
}

impl Compression {
    const MAGICS: [(&[u8], Self); 8] = [
        (b"\x7fELF", Self::None),
        (b"\x1f\x8b", Self::Gzip),
        (b"BZh", Self::Bzip2),
        (b"\x5d\0\0", Self::Lzma),
        (b"\xfd7zXZ\0", Self::Xz),
        (b"\x89LZO", Self::Lzo),
        (b"\x02\x21\x4c\x18", Self::Lz4),
        (b"\x28\xb5\x2f\xfd", Self::Zstd),
    ];

    fn of(payload: &Bytes) -> Self {
        Self::MAGICS
            .iter()
            .find(|(magic, _)| payload.has(0, magic))
            .map_or(Self::Unknown, |(_, compression)| *compression)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "LZMA",
            Self::Xz => "XZ",
            Self::Lzo => "LZO",
            Self::Lz4 => "LZ4",
            Self::Zstd => "Zstandard",
            Self::Unknown => "unknown",
        })
    }
}

/// What a bzImage's setup header says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SetupHeader {
    /// Boot protocol, 0x020f for 2.15.
    pub protocol: u16,
    /// Offset of the protected-mode part in the file, in bytes.
    pub protected_offset: u64,
    /// Length of the protected-mode part in bytes.
    pub protected_bytes: u64,
    /// The physical address that it would like to be unpacked to.
    pub preferred_address: u64,
    /// Bytes of memory from there that it needs before it reads the memory map.
    pub init_bytes: u32,
    /// How the kernel proper is packed.
    pub compression: Compression,
}

pub(super) fn has_setup_header(head: &Bytes) -> bool {
    head.has(BOOT_FLAG, &[0x55, 0xaa]) && head.has(MAGIC, b"HdrS")
}

pub(super) fn inspect<R: Read + Seek>(
    input: &mut Input<'_, R>,
    head: &Bytes,
) -> Result<KernelImage, InspectErrorKind> {
    let setup = setup_header(input, head)?;
    let memory_end = setup
        .preferred_address
        .checked_add(u64::from(setup.init_bytes))
        .ok_or_else(|| InspectErrorKind::corrupt(WHAT, "it wants to lie beyond all memory"))?;
    Ok(KernelImage {
        format: KernelFormat::BzImage,
        arch: Arch::X86_64,
        file_bytes: input.length(),
        version: release(head, setup.protected_offset),
        memory_end,
        elf: None,
        setup: Some(setup),
    })
}

fn setup_header<R: Read + Seek>(
    input: &mut Input<'_, R>,
    head: &Bytes,
) -> Result<SetupHeader, InspectErrorKind> {
    let short = |expected: u64, actual: u64| InspectErrorKind::Truncated {
        what: WHAT,
        expected,
        actual,
    };
    let length = input.length();
    if head.as_slice().len() < HEADER_END {
        return Err(short(HEADER_END as u64, length));
    }
    let protocol = head.u16(PROTOCOL).unwrap_or_default();
    if protocol < OLDEST_PROTOCOL {
        return Err(InspectErrorKind::Unsupported {
            what: format!(
                "a kernel with boot protocol {}.{:02}, older than Linux 3.8",
                protocol >> 8,
                protocol & 0xff
            ),
            fix: "give a newer kernel",
        });
    }
    if head.u8(LOAD_FLAGS).unwrap_or_default() & LOADED_HIGH == 0 {
        return Err(InspectErrorKind::Unsupported {
            what: "a zImage, which is loaded below 1 MiB".to_owned(),
            fix: "give a bzImage",
        });
    }
    if head.u16(EXTENDED_LOAD_FLAGS).unwrap_or_default() & KERNEL_64 == 0 {
        return Err(InspectErrorKind::Unsupported {
            what: "a kernel for 32-bit x86".to_owned(),
            fix: "give a 64-bit kernel",
        });
    }
    // The protocol says that 0 stands for 4 here.
    let setup_sectors = match head.u8(SETUP_SECTORS).unwrap_or_default() {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let protected_offset = (setup_sectors + 1) * SECTOR_BYTES;
    let protected_bytes = u64::from(head.u32(PROTECTED_PARAGRAPHS).unwrap_or_default()) * 16;
    if protected_bytes == 0 {
        return Err(InspectErrorKind::corrupt(
            WHAT,
            "its header tells of an empty kernel",
        ));
    }
    let expected = protected_offset + protected_bytes;
    if expected > length {
        return Err(short(expected, length));
    }
    let payload_offset = u64::from(head.u32(PAYLOAD_OFFSET).unwrap_or_default());
    let payload_bytes = u64::from(head.u32(PAYLOAD_LENGTH).unwrap_or_default());
    if payload_offset + payload_bytes > protected_bytes {
        return Err(InspectErrorKind::corrupt(
            WHAT,
            "its packed kernel reaches beyond the end of its protected-mode part",
        ));
    }
    let payload = input.read_at(protected_offset + payload_offset, 8)?;
    Ok(SetupHeader {
        protocol,
        protected_offset,
        protected_bytes,
        preferred_address: head.u64(PREFERRED_ADDRESS).unwrap_or_default(),
        init_bytes: head.u32(INIT_SIZE).unwrap_or_default(),
        compression: Compression::of(&payload),
    })
}

/// The release: a pointer from 0x200 into the setup part, where the whole banner without its first
/// two words stands.
fn release(head: &Bytes, setup_bytes: u64) -> Option<String> {
    let pointer = head.u16(VERSION_POINTER)?;
    if pointer == 0 {
        return None;
    }
    let at = usize::from(pointer) + 0x200;
    let end = usize::try_from(setup_bytes).ok()?;
    let setup = head.as_slice();
    version::release(setup.get(at..end.min(setup.len()))?)
}
