//! ELF `vmlinux` (System V ABI, "Object Files"), with the PVH note of Xen's x86 HVM direct boot ABI.

use std::io::{Read, Seek};

use super::input::{Bytes, Input};
use super::{Detail, InspectErrorKind, KernelFormat, KernelImage, version};
use crate::Arch;

const WHAT: &str = "ELF vmlinux";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// A `vmlinux` has about five; the cap bounds what a made-up file can make us read.
const MAX_PROGRAM_HEADERS: u16 = 128;
/// Notes are a few hundred bytes; more than this is not read.
const MAX_NOTE_BYTES: u64 = 64 << 10;

const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_RELOCATABLE: u16 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const TYPE_CORE: u16 = 4;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_INTERPRETER: u32 = 3;
const SEGMENT_NOTE: u32 = 4;
const SEGMENT_TLS: u32 = 7;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE_PVH_ENTRY: u32 = 18;

/// What an ELF kernel's headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ElfKernel {
    /// Physical address of the 64-bit entry point.
    pub entry: u64,
    /// Physical address of the 32-bit PVH entry point, where there is one.
    pub pvh_entry: Option<u64>,
    /// Lowest physical address of a loaded segment.
    pub load_start: u64,
    /// End of the highest loaded segment, its zeroed part included.
    pub load_end: u64,
}

pub(super) fn is_elf(head: &Bytes) -> bool {
    head.has(0, b"\x7fELF")
}

struct Segment {
    kind: u32,
    offset: u64,
    physical: u64,
    file_bytes: u64,
    memory_bytes: u64,
    alignment: u64,
}

impl Segment {
    fn read(table: &Bytes, index: usize) -> Option<Self> {
        let at = index * PROGRAM_HEADER_BYTES;
        Some(Self {
            kind: table.u32(at)?,
            offset: table.u64(at + 8)?,
            physical: table.u64(at + 24)?,
            file_bytes: table.u64(at + 32)?,
            memory_bytes: table.u64(at + 40)?,
            alignment: table.u64(at + 48)?,
        })
    }
}

pub(super) fn inspect<R: Read + Seek>(
    input: &mut Input<'_, R>,
    head: &Bytes,
    detail: Detail,
) -> Result<KernelImage, InspectErrorKind> {
    let arch = check_header(input, head)?;
    let segments = program_headers(input, head)?;
    let pvh_entry = pvh_entry(input, &segments)?;
    if pvh_entry.is_none()
        && segments
            .iter()
            .any(|segment| matches!(segment.kind, SEGMENT_INTERPRETER | SEGMENT_TLS))
    {
        return Err(InspectErrorKind::NotAKernel {
            what: "a program",
            fix: "give a kernel; to run a program in a guest, put it into the guest's files",
        });
    }
    let (load_start, load_end) = load_range(input, &segments)?;
    let entry = head.u64(24).unwrap_or_default();
    check_entry("its entry point", entry, &segments)?;
    if let Some(pvh_entry) = pvh_entry {
        check_entry("its PVH entry point", pvh_entry, &segments)?;
    }
    if arch == Arch::Aarch64 {
        return Err(InspectErrorKind::Unsupported {
            what: "an ELF kernel for aarch64, which cannot be booted directly".to_owned(),
            fix: "give arch/arm64/boot/Image from the same build",
        });
    }
    let version = match detail {
        Detail::Headers => None,
        Detail::Version => version::search(input)?,
    };
    Ok(KernelImage {
        format: KernelFormat::Elf,
        arch,
        file_bytes: input.length(),
        version,
        memory_end: load_end,
        elf: Some(ElfKernel {
            entry,
            pvh_entry,
            load_start,
            load_end,
        }),
        setup: None,
    })
}

fn check_header<R: Read + Seek>(
    input: &Input<'_, R>,
    head: &Bytes,
) -> Result<Arch, InspectErrorKind> {
    if input.length() < HEADER_BYTES as u64 {
        return Err(truncated(input, HEADER_BYTES as u64));
    }
    let machine = head.u16(18).unwrap_or_default();
    if head.u8(4) != Some(CLASS_64) || head.u8(5) != Some(LITTLE_ENDIAN) {
        return Err(unknown_machine(machine, head));
    }
    let arch = match machine {
        62 => Arch::X86_64,
        183 => Arch::Aarch64,
        _ => return Err(unknown_machine(machine, head)),
    };
    match head.u16(16).unwrap_or_default() {
        TYPE_EXECUTABLE | TYPE_SHARED => Ok(arch),
        TYPE_RELOCATABLE => Err(InspectErrorKind::NotAKernel {
            what: "an object file or kernel module",
            fix: "give the kernel itself, `vmlinux` or `vmlinuz`",
        }),
        TYPE_CORE => Err(InspectErrorKind::NotAKernel {
            what: "a core dump",
            fix: "give the kernel itself, `vmlinux` or `vmlinuz`",
        }),
        other => Err(InspectErrorKind::corrupt(
            WHAT,
            format!("{other} is not an ELF file type"),
        )),
    }
}

fn unknown_machine(machine: u16, head: &Bytes) -> InspectErrorKind {
    let name = match machine {
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "s390",
        40 => "32-bit Arm",
        62 => "x86-64 with 32-bit or big-endian headers",
        183 => "aarch64 with 32-bit or big-endian headers",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => {
            return InspectErrorKind::Unsupported {
                what: format!(
                    "an ELF file for a machine (number {machine}, class {}) that guests cannot be",
                    head.u8(4).unwrap_or_default()
                ),
                fix: "give a 64-bit kernel for this machine's architecture",
            };
        }
    };
    InspectErrorKind::Unsupported {
        what: format!("an ELF file for {name}, which guests cannot be"),
        fix: "give a 64-bit kernel for this machine's architecture",
    }
}

fn program_headers<R: Read + Seek>(
    input: &mut Input<'_, R>,
    head: &Bytes,
) -> Result<Vec<Segment>, InspectErrorKind> {
    let offset = head.u64(32).unwrap_or_default();
    let entry_bytes = head.u16(54).unwrap_or_default();
    let count = head.u16(56).unwrap_or_default();
    if count == 0 {
        return Err(InspectErrorKind::corrupt(
            WHAT,
            "it has no program headers, so nothing of it would be loaded",
        ));
    }
    if usize::from(entry_bytes) != PROGRAM_HEADER_BYTES || count > MAX_PROGRAM_HEADERS {
        return Err(InspectErrorKind::corrupt(
            WHAT,
            format!("it tells of {count} program headers of {entry_bytes} bytes"),
        ));
    }
    let bytes = usize::from(count) * PROGRAM_HEADER_BYTES;
    let end = offset
        .checked_add(bytes as u64)
        .ok_or_else(|| InspectErrorKind::corrupt(WHAT, "its program headers lie at no address"))?;
    if end > input.length() {
        return Err(truncated(input, end));
    }
    let table = input.read_at(offset, bytes)?;
    Ok((0..usize::from(count))
        .filter_map(|index| Segment::read(&table, index))
        .collect())
}

/// Checks the loaded segments; gives their lowest and highest physical address.
fn load_range<R: Read + Seek>(
    input: &Input<'_, R>,
    segments: &[Segment],
) -> Result<(u64, u64), InspectErrorKind> {
    let mut range: Option<(u64, u64)> = None;
    for segment in loaded(segments) {
        let file_end = segment.offset.checked_add(segment.file_bytes);
        let memory_end = segment.physical.checked_add(segment.memory_bytes);
        let (Some(file_end), Some(memory_end)) = (file_end, memory_end) else {
            return Err(InspectErrorKind::corrupt(
                WHAT,
                "a segment reaches beyond the end of the address space",
            ));
        };
        if segment.file_bytes > segment.memory_bytes {
            return Err(InspectErrorKind::corrupt(
                WHAT,
                "a segment is larger in the file than in memory",
            ));
        }
        if file_end > input.length() {
            return Err(truncated(input, file_end));
        }
        let (start, end) = range.unwrap_or((segment.physical, memory_end));
        range = Some((start.min(segment.physical), end.max(memory_end)));
    }
    range.ok_or_else(|| InspectErrorKind::corrupt(WHAT, "it has no segment to load"))
}

fn loaded(segments: &[Segment]) -> impl Iterator<Item = &Segment> {
    segments
        .iter()
        .filter(|segment| segment.kind == SEGMENT_LOAD && segment.memory_bytes > 0)
}

fn check_entry(
    name: &'static str,
    entry: u64,
    segments: &[Segment],
) -> Result<(), InspectErrorKind> {
    let inside = loaded(segments).any(|segment| {
        entry
            .checked_sub(segment.physical)
            .is_some_and(|offset| offset < segment.file_bytes)
    });
    if inside {
        return Ok(());
    }
    Err(InspectErrorKind::corrupt(
        WHAT,
        format!("{name} ({entry:#x}) lies in none of its segments"),
    ))
}

fn pvh_entry<R: Read + Seek>(
    input: &mut Input<'_, R>,
    segments: &[Segment],
) -> Result<Option<u64>, InspectErrorKind> {
    for segment in segments {
        if segment.kind != SEGMENT_NOTE {
            continue;
        }
        let bytes = segment.file_bytes.min(MAX_NOTE_BYTES) as usize;
        let notes = input.read_at(segment.offset, bytes)?;
        let alignment = if segment.alignment == 8 { 8 } else { 4 };
        if let Some(entry) = pvh_entry_in(&notes, alignment) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn pvh_entry_in(notes: &Bytes, alignment: usize) -> Option<u64> {
    let mut at: usize = 0;
    loop {
        let name_bytes = usize::try_from(notes.u32(at)?).ok()?;
        let value_bytes = usize::try_from(notes.u32(at.checked_add(4)?)?).ok()?;
        let kind = notes.u32(at.checked_add(8)?)?;
        let name_at = at.checked_add(12)?;
        let value_at = name_at
            .checked_add(name_bytes)?
            .checked_next_multiple_of(alignment)?;
        if kind == NOTE_PVH_ENTRY && name_bytes == 4 && notes.has(name_at, b"Xen\0") {
            return match value_bytes {
                4 => notes.u32(value_at).map(u64::from),
                8 => notes.u64(value_at),
                _ => None,
            };
        }
        at = value_at
            .checked_add(value_bytes)?
            .checked_next_multiple_of(alignment)?;
    }
}

fn truncated<R: Read + Seek>(input: &Input<'_, R>, expected: u64) -> InspectErrorKind {
    InspectErrorKind::Truncated {
        what: WHAT,
        expected,
        actual: input.length(),
    }
}
