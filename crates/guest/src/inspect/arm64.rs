//! arm64 `Image` (Documentation/arch/arm64/booting.rst in Linux: "Call the kernel image").

use std::io::{Read, Seek};

use super::input::{Bytes, Input};
use super::{Detail, InspectErrorKind, KernelFormat, KernelImage, version};
use crate::Arch;

const WHAT: &str = "arm64 Image";
const TEXT_OFFSET: usize = 8;
const IMAGE_BYTES: usize = 16;
const FLAGS: usize = 24;
const MAGIC: usize = 56;
const HEADER_BYTES: u64 = 64;
const BIG_ENDIAN: u64 = 1 << 0;

pub(super) fn has_image_header(head: &Bytes) -> bool {
    head.has(MAGIC, b"ARM\x64")
}

pub(super) fn inspect<R: Read + Seek>(
    input: &mut Input<'_, R>,
    head: &Bytes,
    detail: Detail,
) -> Result<KernelImage, InspectErrorKind> {
    if input.length() <= HEADER_BYTES {
        return Err(InspectErrorKind::Truncated {
            what: WHAT,
            expected: HEADER_BYTES + 1,
            actual: input.length(),
        });
    }
    if head.u64(FLAGS).unwrap_or_default() & BIG_ENDIAN != 0 {
        return Err(InspectErrorKind::Unsupported {
            what: "a big-endian kernel for aarch64".to_owned(),
            fix: "give a little-endian kernel",
        });
    }
    // The length in memory, with the zeroed part that the file does not hold. Kernels before 3.17
    // have 0 here.
    let image_bytes = head.u64(IMAGE_BYTES).unwrap_or_default();
    if image_bytes != 0 && image_bytes < input.length() {
        return Err(InspectErrorKind::corrupt(
            WHAT,
            format!(
                "its header tells of {image_bytes} bytes in memory, and the file has {}",
                input.length()
            ),
        ));
    }
    let memory_end = head
        .u64(TEXT_OFFSET)
        .unwrap_or_default()
        .checked_add(image_bytes)
        .ok_or_else(|| InspectErrorKind::corrupt(WHAT, "it wants to lie beyond all memory"))?;
    let version = match detail {
        Detail::Headers => None,
        Detail::Version => version::search(input)?,
    };
    Ok(KernelImage {
        format: KernelFormat::Arm64Image,
        arch: Arch::Aarch64,
        file_bytes: input.length(),
        version,
        memory_end,
        elf: None,
        setup: None,
    })
}
