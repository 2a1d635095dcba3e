//! ELF `vmlinux` kernels.
//!
//! *Tool Interface Standard, ELF 1.2* for the format, *x86/HVM direct boot ABI* (Xen) for the note
//! that carries the PVH entry point.

use std::io::Cursor;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Entry, Image, LoadedKernel, load_range, read_exact_at};
use crate::machine::error::KernelError;
use crate::machine::layout::KERNEL_MIN;

const HEADER_LEN: u64 = 64;
const SEGMENT_HEADER_LEN: u64 = 56;
const SECTION_HEADER_LEN: u64 = 64;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
const NOTE_PVH_ENTRY: u32 = 18;

/// A vmlinux has 4 to 6; a file that claims thousands is not one.
const SEGMENTS_MAX: u16 = 64;
/// A vmlinux has about 60, one built with a section per function tens of thousands.
const SECTIONS_MAX: u16 = 4096;
/// A vmlinux's notes are a few hundred bytes; this bounds what a corrupt file makes us read.
const NOTES_MAX: u64 = 64 << 10;
/// `COMMAND_LINE_SIZE` of Linux on x86, its NUL not counted.
const COMMAND_LINE_MAX: usize = 2047;
/// The ACPI identifier of virtio-mmio devices, as it lies in the driver's (8-byte aligned) table.
const VIRTIO_MMIO_ACPI_ID: u64 = u64::from_le_bytes(*b"LNRO0005");

struct Header {
    entry: u64,
    segments_offset: u64,
    segments: u16,
    sections_offset: u64,
    sections: u16,
    section_names: u16,
}

#[derive(Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    file_len: u64,
    memory_len: u64,
}

fn corrupt(what: &str) -> KernelError {
    KernelError::Corrupt(what.to_owned())
}

/// Little-endian fields of a byte array; reading past its end gives zeros, which no caller does.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0
            .get(at..at + N)
            .and_then(|b| b.try_into().ok())
            .unwrap_or([0; N])
    }
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }
}

/// Loads the segments of an ELF kernel of `len` bytes to their physical addresses.
///
/// # Errors
/// See [`KernelError`].
pub fn load<M, F>(
    memory: &M,
    low_bytes: u64,
    file: &mut F,
    len: u64,
) -> Result<LoadedKernel, KernelError>
where
    M: GuestMemoryBackend,
    F: Image,
{
    let header = read_header(file, len)?;
    let segments = read_segments(file, len, &header)?;
    let loads = loadable(&segments, len)?;
    let (start, end) = span(&loads, low_bytes)?;
    let inside = |address: u64| {
        loads
            .iter()
            .any(|s| address >= s.address && address - s.address < s.file_len)
    };

    let entry = match pvh_entry(file, len, &segments)? {
        Some(address) => Entry::Pvh(address),
        None => Entry::Linux64(header.entry),
    };
    let (Entry::Pvh(address) | Entry::Linux64(address)) = entry;
    if !inside(address) {
        return Err(KernelError::Corrupt(format!(
            "its entry point {address:#x} is in no loaded segment"
        )));
    }

    for s in loads.iter().filter(|s| s.file_len > 0) {
        load_range(memory, file, s.offset, s.address, s.file_len)?;
    }
    let finds_acpi_devices = find_read_only_data(file, len, &header, &loads)
        .map(|(address, len)| contains_acpi_id(memory, address, len));
    Ok(LoadedKernel {
        entry,
        start,
        end,
        command_line_max: COMMAND_LINE_MAX,
        initrd_last: low_bytes - 1,
        setup_header: None,
        finds_acpi_devices,
    })
}

fn read_header<F: Image>(file: &mut F, len: u64) -> Result<Header, KernelError> {
    if len < HEADER_LEN {
        return Err(KernelError::Truncated {
            what: "ELF header",
            needed: HEADER_LEN,
            len,
        });
    }
    let mut bytes = [0u8; HEADER_LEN as usize];
    read_exact_at(file, 0, &mut bytes)?;
    let f = Fields(&bytes);
    let (class, endianness) = (bytes[4], bytes[5]);
    if endianness != LITTLE_ENDIAN {
        return Err(KernelError::WrongArchitecture {
            found: "a big-endian processor".into(),
        });
    }
    let machine = f.u16(18);
    if machine != MACHINE_X86_64 {
        return Err(KernelError::WrongArchitecture {
            found: machine_name(machine),
        });
    }
    if class != CLASS_64 {
        return Err(KernelError::WrongArchitecture {
            found: "the 32-bit ABI of x86-64".into(),
        });
    }
    let kind = f.u16(16);
    if kind != TYPE_EXECUTABLE && kind != TYPE_SHARED {
        return Err(corrupt(
            "it is an ELF file, but not an executable (an object file or a core dump?)",
        ));
    }
    if u64::from(f.u16(54)) != SEGMENT_HEADER_LEN {
        return Err(corrupt("its program headers have the wrong length"));
    }
    Ok(Header {
        entry: f.u64(24),
        segments_offset: f.u64(32),
        segments: f.u16(56),
        sections_offset: f.u64(40),
        sections: if u64::from(f.u16(58)) == SECTION_HEADER_LEN {
            f.u16(60)
        } else {
            0
        },
        section_names: f.u16(62),
    })
}

fn machine_name(machine: u16) -> String {
    match machine {
        3 => "32-bit x86".into(),
        8 => "MIPS".into(),
        20 | 21 => "PowerPC".into(),
        22 => "s390".into(),
        40 => "32-bit ARM".into(),
        183 => "AArch64".into(),
        243 => "RISC-V".into(),
        258 => "LoongArch".into(),
        other => format!("ELF machine {other}"),
    }
}

fn read_segments<F: Image>(
    file: &mut F,
    len: u64,
    header: &Header,
) -> Result<Vec<Segment>, KernelError> {
    if header.segments == 0 {
        return Err(corrupt("it has no program headers"));
    }
    if header.segments > SEGMENTS_MAX {
        return Err(KernelError::Corrupt(format!(
            "it claims {} program headers, a kernel has at most {SEGMENTS_MAX}",
            header.segments
        )));
    }
    let table_len = u64::from(header.segments) * SEGMENT_HEADER_LEN;
    let table_end = header
        .segments_offset
        .checked_add(table_len)
        .ok_or_else(|| corrupt("its program headers lie beyond the end of any file"))?;
    if table_end > len {
        return Err(KernelError::Truncated {
            what: "program header table",
            needed: table_end,
            len,
        });
    }
    let mut table = vec![0u8; table_len as usize];
    read_exact_at(file, header.segments_offset, &mut table)?;
    Ok(table
        .chunks_exact(SEGMENT_HEADER_LEN as usize)
        .map(|bytes| {
            let f = Fields(bytes);
            Segment {
                kind: f.u32(0),
                offset: f.u64(8),
                address: f.u64(24),
                file_len: f.u64(32),
                memory_len: f.u64(40),
            }
        })
        .collect())
}

/// The segments to load, by address, each checked against the file and the one before it.
fn loadable(segments: &[Segment], len: u64) -> Result<Vec<Segment>, KernelError> {
    let mut loads: Vec<Segment> = segments
        .iter()
        .filter(|s| s.kind == SEGMENT_LOAD && s.memory_len > 0)
        .copied()
        .collect();
    loads.sort_by_key(|s| s.address);
    let mut end = 0;
    for s in &loads {
        if s.file_len > s.memory_len {
            return Err(corrupt("a segment is longer in the file than in memory"));
        }
        let file_end = s
            .offset
            .checked_add(s.file_len)
            .ok_or_else(|| corrupt("a segment lies beyond the end of any file"))?;
        if file_end > len {
            return Err(KernelError::Truncated {
                what: "loadable segment",
                needed: file_end,
                len,
            });
        }
        if s.address < end {
            return Err(corrupt("two of its segments overlap in memory"));
        }
        end = s
            .address
            .checked_add(s.memory_len)
            .ok_or_else(|| corrupt("a segment reaches beyond the address space"))?;
    }
    Ok(loads)
}

/// First address and end of what the segments take in memory.
fn span(loads: &[Segment], low_bytes: u64) -> Result<(u64, u64), KernelError> {
    let (Some(first), Some(last)) = (loads.first(), loads.last()) else {
        return Err(corrupt("it has no segment to load"));
    };
    if first.address < KERNEL_MIN {
        return Err(KernelError::Corrupt(format!(
            "it wants to be loaded at {:#x}, kernels are loaded at or above {KERNEL_MIN:#x}",
            first.address
        )));
    }
    let end = last.address + last.memory_len;
    if end > low_bytes {
        return Err(KernelError::NeedsMemory {
            needs: end,
            has: low_bytes,
        });
    }
    Ok((first.address, end))
}

/// The PVH entry point, where one of the notes has it.
fn pvh_entry<F: Image>(
    file: &mut F,
    len: u64,
    segments: &[Segment],
) -> Result<Option<u64>, KernelError> {
    for s in segments.iter().filter(|s| s.kind == SEGMENT_NOTE) {
        let end = s.offset.checked_add(s.file_len);
        if end.is_none_or(|end| end > len) {
            return Err(KernelError::Truncated {
                what: "note segment",
                needed: end.unwrap_or(u64::MAX),
                len,
            });
        }
        let mut notes = vec![0u8; s.file_len.min(NOTES_MAX) as usize];
        read_exact_at(file, s.offset, &mut notes)?;
        if let Some(entry) = find_pvh_note(&notes) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

fn find_pvh_note(mut notes: &[u8]) -> Option<u64> {
    loop {
        let header = Fields(notes.get(..12)?);
        let (name_len, value_len) = (header.u32(0) as usize, header.u32(4) as usize);
        let kind = header.u32(8);
        let name_at = 12usize;
        let value_at = name_at.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let next = value_at.checked_add(value_len.checked_next_multiple_of(4)?)?;
        if kind == NOTE_PVH_ENTRY && notes.get(name_at..name_at + 4)? == b"Xen\0" && name_len == 4 {
            let value = notes.get(value_at..value_at.checked_add(value_len)?)?;
            return match value_len {
                4 => Some(u64::from(Fields(value).u32(0))),
                8 => Some(Fields(value).u64(0)),
                _ => None,
            };
        }
        notes = notes.get(next..)?;
    }
}

/// Guest address and length of the loaded `.rodata`, where the section table shows it.
fn find_read_only_data<F: Image>(
    file: &mut F,
    len: u64,
    header: &Header,
    loads: &[Segment],
) -> Option<(u64, u64)> {
    if header.sections == 0 || header.sections > SECTIONS_MAX {
        return None;
    }
    let table_len = u64::from(header.sections) * SECTION_HEADER_LEN;
    header
        .sections_offset
        .checked_add(table_len)
        .filter(|end| *end <= len)?;
    let mut table = vec![0u8; table_len as usize];
    read_exact_at(file, header.sections_offset, &mut table).ok()?;
    let sections = table.chunks_exact(SECTION_HEADER_LEN as usize).map(Fields);
    let names_offset = sections.clone().nth(header.section_names.into())?.u64(24);
    for section in sections {
        let mut name = [0u8; 8];
        let name_offset = names_offset.checked_add(section.u32(0).into())?;
        if name_offset.checked_add(8)? > len {
            continue;
        }
        read_exact_at(file, name_offset, &mut name).ok()?;
        if &name != b".rodata\0" {
            continue;
        }
        let (offset, size) = (section.u64(24), section.u64(32));
        let end = offset.checked_add(size)?;
        let segment = loads
            .iter()
            .find(|s| offset >= s.offset && end <= s.offset + s.file_len)?;
        return Some((segment.address + (offset - segment.offset), size));
    }
    None
}

fn contains_acpi_id<M: GuestMemoryBackend>(memory: &M, address: u64, len: u64) -> bool {
    let mut words = vec![0u8; 64 << 10];
    let mut done = 0;
    // The table the identifier lies in is aligned to 8 bytes, so that whole words can be compared.
    let address = address.next_multiple_of(8);
    while done < len {
        let part = (len - done).min(words.len() as u64) as usize;
        let Some(buffer) = words.get_mut(..part) else {
            return false;
        };
        if memory
            .read_slice(buffer, GuestAddress(address + done))
            .is_err()
        {
            return false;
        }
        let (chunks, _) = buffer.as_chunks::<8>();
        if chunks
            .iter()
            .any(|w| u64::from_le_bytes(*w) == VIRTIO_MMIO_ACPI_ID)
        {
            return true;
        }
        done += part as u64;
    }
    false
}

/// Loads an ELF kernel from a byte slice; for fuzzing and tests.
///
/// # Errors
/// See [`load`].
pub fn load_bytes<M: GuestMemoryBackend>(
    memory: &M,
    low_bytes: u64,
    bytes: &[u8],
) -> Result<LoadedKernel, KernelError> {
    load(
        memory,
        low_bytes,
        &mut Cursor::new(bytes),
        bytes.len() as u64,
    )
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
