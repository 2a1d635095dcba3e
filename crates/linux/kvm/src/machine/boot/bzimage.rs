//! bzImage kernels, entered at their 64-bit entry point.
//!
//! *The Linux/x86 Boot Protocol* (Documentation/arch/x86/boot.rst), 2.12 and later.

use std::io::Cursor;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{ByteValued, GuestMemoryBackend};

use super::{Entry, Image, LoadedKernel, load_range, read_exact_at};
use crate::machine::error::KernelError;
use crate::machine::layout::{KERNEL_MIN, LOW_MEMORY_LIMIT};

/// Where the setup header starts in the file and in the zero page.
const SETUP_HEADER_OFFSET: u64 = 0x1f1;
/// Where the jump over the header is; its operand is the header's end, counted from here plus 2.
const JUMP_OFFSET: u64 = 0x200;
const SECTOR: u64 = 512;
/// The protocol version that brought `xloadflags` and with it the 64-bit entry point.
const VERSION_64_BIT: u16 = 0x020c;
const XLOADFLAG_KERNEL_64: u16 = 1;
/// The 64-bit entry point's distance from the load address.
const ENTRY_64_OFFSET: u64 = 0x200;
/// What "no setup sectors" means.
const SETUP_SECTORS_DEFAULT: u64 = 4;

fn corrupt(what: impl Into<String>) -> KernelError {
    KernelError::Corrupt(what.into())
}

/// Loads the protected-mode part of a bzImage of `len` bytes.
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
    let header = read_setup_header(file, len)?;
    let (version, loadflags) = (header.version, header.xloadflags);
    if version < VERSION_64_BIT || loadflags & XLOADFLAG_KERNEL_64 == 0 {
        let [minor, major] = version.to_le_bytes();
        return Err(KernelError::No64BitEntry { major, minor });
    }

    let setup_sectors = match header.setup_sects {
        0 => SETUP_SECTORS_DEFAULT,
        n => n.into(),
    };
    let payload_offset = (setup_sectors + 1) * SECTOR;
    // `syssize` counts paragraphs and is rounded up, so the last few bytes may be missing.
    let announced = payload_offset + u64::from(header.syssize) * 16;
    if len <= payload_offset || len + 16 < announced {
        return Err(KernelError::Truncated {
            what: "compressed kernel",
            needed: announced.max(payload_offset + 1),
            len,
        });
    }
    let payload_len = len - payload_offset;
    if payload_len <= ENTRY_64_OFFSET {
        return Err(corrupt("its compressed kernel ends before its entry point"));
    }

    let place = place(&header)?;
    let end = place
        .run_at
        .checked_add(header.init_size.into())
        .into_iter()
        .chain(place.load_at.checked_add(payload_len))
        .max()
        .unwrap_or(u64::MAX);
    if end > low_bytes {
        return Err(KernelError::NeedsMemory {
            needs: end,
            has: low_bytes,
        });
    }
    load_range(memory, file, payload_offset, place.load_at, payload_len)?;
    Ok(LoadedKernel {
        entry: Entry::Linux64(place.load_at + ENTRY_64_OFFSET),
        start: place.load_at.min(place.run_at),
        end,
        command_line_max: header.cmdline_size as usize,
        initrd_last: u64::from(header.initrd_addr_max).min(low_bytes - 1),
        setup_header: Some(header),
        finds_acpi_devices: None,
    })
}

struct Place {
    /// Where the compressed kernel is put.
    load_at: u64,
    /// Where it unpacks itself to; it needs `init_size` bytes from there.
    run_at: u64,
}

/// Chooses the load address.
///
/// A relocatable kernel is put at its preferred address: lower, it would move itself there anyway.
/// One that is not goes where its header says and unpacks to the preferred address as well.
fn place(header: &setup_header) -> Result<Place, KernelError> {
    let (preferred, alignment, code32_start) = (
        header.pref_address,
        u64::from(header.kernel_alignment),
        u64::from(header.code32_start),
    );
    if header.init_size == 0 {
        return Err(corrupt("its header asks for no memory to unpack into"));
    }
    if !(KERNEL_MIN..LOW_MEMORY_LIMIT).contains(&preferred) {
        return Err(corrupt(format!(
            "its preferred load address is {preferred:#x}"
        )));
    }
    if header.relocatable_kernel != 0 {
        if !alignment.is_power_of_two() {
            return Err(corrupt(format!("its alignment is {alignment:#x}")));
        }
        let at = preferred.next_multiple_of(alignment);
        return Ok(Place {
            load_at: at,
            run_at: at,
        });
    }
    if code32_start < KERNEL_MIN {
        return Err(corrupt(format!("its load address is {code32_start:#x}")));
    }
    Ok(Place {
        load_at: code32_start,
        run_at: preferred,
    })
}

fn read_setup_header<F: Image>(file: &mut F, len: u64) -> Result<setup_header, KernelError> {
    let truncated = |needed| KernelError::Truncated {
        what: "setup header",
        needed,
        len,
    };
    let mut jump = [0u8; 2];
    if len < JUMP_OFFSET + 2 {
        return Err(truncated(JUMP_OFFSET + 2));
    }
    read_exact_at(file, JUMP_OFFSET, &mut jump)?;
    let end = JUMP_OFFSET + 2 + u64::from(jump[1]);
    if end > len {
        return Err(truncated(end));
    }
    let mut header = setup_header::default();
    // An older kernel's header is shorter: what it lacks stays zero. A newer one's is longer: the
    // rest is for loaders that know it.
    let known = header
        .as_slice()
        .len()
        .min((end - SETUP_HEADER_OFFSET) as usize);
    if let Some(bytes) = header.as_mut_slice().get_mut(..known) {
        read_exact_at(file, SETUP_HEADER_OFFSET, bytes)?;
    }
    Ok(header)
}

/// Loads a bzImage from a byte slice; for fuzzing and tests.
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
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::machine::boot::testing::memory;

    const LOW: u64 = 32 << 20;

    fn header() -> setup_header {
        setup_header {
            setup_sects: 1,
            jump: u16::from_le_bytes([0xeb, 0x66 + 4]),
            header: u32::from_le_bytes(*b"HdrS"),
            version: 0x020f,
            xloadflags: XLOADFLAG_KERNEL_64,
            relocatable_kernel: 1,
            kernel_alignment: 0x20_0000,
            pref_address: 0x100_0000,
            init_size: 0x40_0000,
            code32_start: 0x10_0000,
            cmdline_size: 2047,
            initrd_addr_max: 0x7fff_ffff,
            syssize: 0x400 / 16,
            ..Default::default()
        }
    }

    fn image(header: &setup_header) -> Vec<u8> {
        let mut file = vec![0u8; 2 * 512 + 0x400];
        file[0x1f1..][..header.as_slice().len()].copy_from_slice(header.as_slice());
        file[2 * 512..].fill(0x90);
        file
    }

    fn refusal(header: &setup_header) -> KernelError {
        load_bytes(&memory(32), LOW, &image(header)).unwrap_err()
    }

    #[test]
    fn relocatable_is_loaded_at_its_preferred_address() {
        let memory = memory(32);

        let kernel = load_bytes(&memory, LOW, &image(&header())).unwrap();

        assert_eq!(kernel.entry, Entry::Linux64(0x100_0200));
        assert_eq!((kernel.start, kernel.end), (0x100_0000, 0x140_0000));
        assert_eq!(kernel.command_line_max, 2047);
        let last: u8 = memory.read_obj(GuestAddress(0x100_0000 + 0x3ff)).unwrap();
        assert_eq!(last, 0x90);
    }

    #[test]
    fn not_relocatable_is_loaded_where_its_header_says() {
        let mut header = header();
        header.relocatable_kernel = 0;

        let kernel = load_bytes(&memory(32), LOW, &image(&header)).unwrap();

        assert_eq!(kernel.entry, Entry::Linux64(0x10_0200));
        assert_eq!((kernel.start, kernel.end), (0x10_0000, 0x140_0000));
    }

    #[test]
    fn preferred_address_is_raised_to_the_alignment() {
        let mut header = header();
        header.pref_address = 0x101_0000;

        let kernel = load_bytes(&memory(32), LOW, &image(&header)).unwrap();

        assert_eq!(kernel.entry, Entry::Linux64(0x120_0200));
    }

    #[test]
    fn unpacking_beyond_memory_says_how_much_it_needs() {
        let mut header = header();
        header.init_size = 64 << 20;

        let error = refusal(&header);

        assert!(
            matches!(error, KernelError::NeedsMemory { needs, .. } if needs == 80 << 20),
            "{error}"
        );
    }

    #[test]
    fn kernel_of_32_bits_has_no_64_bit_entry() {
        let mut header = header();
        header.xloadflags = 0;

        assert!(matches!(
            refusal(&header),
            KernelError::No64BitEntry {
                major: 2,
                minor: 15
            }
        ));
    }

    #[test]
    fn file_cut_in_the_payload_is_truncated() {
        let file = image(&header());

        let error = load_bytes(&memory(32), LOW, &file[..file.len() - 100]).unwrap_err();

        assert!(matches!(
            error,
            KernelError::Truncated {
                what: "compressed kernel",
                ..
            }
        ));
    }

    #[test]
    fn file_cut_in_the_header_is_truncated() {
        let error = load_bytes(&memory(32), LOW, &image(&header())[..0x210]).unwrap_err();

        assert!(matches!(
            error,
            KernelError::Truncated {
                what: "setup header",
                ..
            }
        ));
    }

    #[test]
    fn alignment_that_is_no_power_of_two_is_corrupt() {
        for alignment in [0, 3, 0x20_0001] {
            let mut header = header();
            header.kernel_alignment = alignment;

            assert!(matches!(refusal(&header), KernelError::Corrupt(_)));
        }
    }

    #[test]
    fn preferred_address_outside_low_memory_is_corrupt() {
        for address in [0, 0x1000, u64::MAX, LOW_MEMORY_LIMIT] {
            let mut header = header();
            header.pref_address = address;

            assert!(matches!(refusal(&header), KernelError::Corrupt(_)));
        }
    }

    #[test]
    fn alignment_beyond_all_memory_is_refused_without_overflow() {
        let mut header = header();
        header.kernel_alignment = 1 << 31;
        header.init_size = u32::MAX;

        assert!(matches!(refusal(&header), KernelError::NeedsMemory { .. }));
    }
}
