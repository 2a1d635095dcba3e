//! The initial RAM disk: read to the top of low memory, as far away from the kernel as can be.

use std::io::SeekFrom;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::{Image, LoadedKernel};
use crate::machine::error::InitrdError;

const PAGE: u64 = 4096;

/// Where an initrd lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedInitrd {
    /// First byte, page-aligned.
    pub address: u64,
    /// Length in bytes, below 4 GiB.
    pub len: u64,
}

/// Reads the whole file behind the kernel.
///
/// # Errors
/// [`InitrdError`]: it is empty, does not fit, or cannot be read.
pub fn load<M, F>(
    memory: &M,
    kernel: &LoadedKernel,
    file: &mut F,
) -> Result<LoadedInitrd, InitrdError>
where
    M: GuestMemoryBackend,
    F: Image,
{
    let len = file.seek(SeekFrom::End(0)).map_err(InitrdError::Read)?;
    if len == 0 {
        return Err(InitrdError::Empty);
    }
    let first_free = kernel.end.next_multiple_of(PAGE);
    let room = (kernel.initrd_last + 1).saturating_sub(first_free);
    let too_large = InitrdError::NeedsMemory { size: len, room };
    let Some(address) = (kernel.initrd_last + 1)
        .checked_sub(len)
        .map(|a| a & !(PAGE - 1))
        .filter(|a| *a >= first_free)
    else {
        return Err(too_large);
    };
    file.rewind().map_err(InitrdError::Read)?;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, len as usize)
        .map_err(|e| InitrdError::Read(std::io::Error::other(e)))?;
    Ok(LoadedInitrd { address, len })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::machine::boot::{Entry, testing::memory};

    const TOP: u64 = 32 << 20;

    fn kernel(initrd_last: u64) -> LoadedKernel {
        LoadedKernel {
            entry: Entry::Linux64(0x100_0200),
            start: 0x100_0000,
            end: 0x1e0_0001,
            command_line_max: 2047,
            initrd_last,
            setup_header: None,
            finds_acpi_devices: None,
        }
    }

    #[test]
    fn initrd_ends_in_the_last_page_of_low_memory() {
        let memory = memory(32);
        let content: Vec<u8> = (0..5000u32).map(|i| i as u8).collect();

        let initrd = load(&memory, &kernel(TOP - 1), &mut Cursor::new(content.clone())).unwrap();

        assert_eq!(initrd.address, TOP - 8192);
        assert_eq!(initrd.len, 5000);
        let mut read = vec![0u8; 5000];
        memory
            .read_slice(&mut read, GuestAddress(initrd.address))
            .unwrap();
        assert_eq!(read, content);
    }

    #[test]
    fn initrd_stays_below_the_limit_of_the_kernel() {
        let limit = 0x1f0_0000;

        let initrd = load(
            &memory(32),
            &kernel(limit - 1),
            &mut Cursor::new(vec![0; 100]),
        )
        .unwrap();

        assert_eq!(initrd.address, limit - 4096);
    }

    #[test]
    fn initrd_that_fills_all_room_is_loaded() {
        let room = TOP - 0x1e0_1000;

        let initrd = load(
            &memory(32),
            &kernel(TOP - 1),
            &mut Cursor::new(vec![0; room as usize]),
        )
        .unwrap();

        assert_eq!(initrd.address, 0x1e0_1000);
    }

    #[test]
    fn initrd_a_byte_too_large_is_refused_with_the_room() {
        let room = TOP - 0x1e0_1000;

        let error = load(
            &memory(32),
            &kernel(TOP - 1),
            &mut Cursor::new(vec![0; room as usize + 1]),
        )
        .unwrap_err();

        assert!(
            matches!(error, InitrdError::NeedsMemory { room: r, .. } if r == room),
            "{error}"
        );
    }

    #[test]
    fn initrd_empty_is_refused() {
        assert!(matches!(
            load(&memory(32), &kernel(TOP - 1), &mut Cursor::new(vec![])),
            Err(InitrdError::Empty)
        ));
    }
}
