//! Guest memory: private to this process, split around the 32-bit gap, in huge pages where the host has them.
//!
//! Huge pages save a guest that boots nine faults of ten, and page tables. `docs/decisions/0016` has the figures, and
//! why it is no memfd.

use std::io;
use std::sync::Arc;

use capsa_virtio::{GuestMemory, GuestRam};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use super::error::{ConfigError, MachineError, Size};
use super::layout::{self, HIGH_MEMORY_START, LOW_MEMORY_LIMIT};

/// The least memory a machine can have, in bytes. Linux itself does not start in less.
pub const MIN_MEMORY: u64 = 32 << 20;
const PAGE: u64 = 4096;
/// What a huge page covers, and where it can begin.
const HUGE_PAGE: usize = 2 << 20;
const ACCESS: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Checks a memory size against what a machine can have.
///
/// `address_bits` is the width of a guest-physical address on this host.
///
/// # Errors
/// Too small, too large, or not whole pages.
pub fn check_size(bytes: u64, address_bits: u8) -> Result<(), ConfigError> {
    // The low limit stays far away from any overflow in address arithmetic.
    let space = 1u64 << address_bits.clamp(32, 52);
    let max = if space <= HIGH_MEMORY_START {
        LOW_MEMORY_LIMIT
    } else {
        space - (HIGH_MEMORY_START - LOW_MEMORY_LIMIT)
    };
    if bytes < MIN_MEMORY {
        Err(ConfigError::MemoryTooSmall {
            got: bytes,
            min: MIN_MEMORY,
        })
    } else if bytes > max {
        Err(ConfigError::MemoryTooLarge { got: bytes, max })
    } else if !bytes.is_multiple_of(PAGE) {
        Err(ConfigError::MemoryUnaligned { got: bytes })
    } else {
        Ok(())
    }
}

/// The RAM of a machine.
#[derive(Debug, Clone)]
pub struct Ram {
    memory: GuestRam,
    bytes: u64,
}

impl Ram {
    /// Creates and maps `bytes` of guest memory; no page is touched yet.
    ///
    /// # Errors
    /// [`MachineError::Memory`] with the step that the host refused.
    pub fn new(bytes: u64) -> Result<Self, MachineError> {
        let failed = |step: &'static str| {
            move |source: io::Error| MachineError::Memory {
                size: Size(bytes),
                step,
                source,
            }
        };
        let mut regions = Vec::with_capacity(2);
        for range in layout::ram_ranges(bytes) {
            let mapping = map(range.size).map_err(|e| failed("mapping it")(io::Error::other(e)))?;
            advise(&mapping).map_err(failed("advising the host about it"))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
                .ok_or_else(|| failed("placing it")(io::ErrorKind::InvalidInput.into()))?;
            regions.push(region);
        }
        let memory = GuestRam::from_regions(regions)
            .map_err(|e| failed("placing it")(io::Error::other(e)))?;
        Ok(Self { memory, bytes })
    }

    /// The mapped memory.
    pub fn memory(&self) -> &GuestRam {
        &self.memory
    }

    /// The memory in the form that device models hold it.
    pub fn shared(&self) -> GuestMemory {
        GuestMemory::from(Arc::new(self.memory.clone()))
    }

    /// All of it, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The part below the 32-bit gap, in bytes. Kernel and initrd are loaded there.
    pub fn low_bytes(&self) -> u64 {
        self.bytes.min(LOW_MEMORY_LIMIT)
    }

    /// Guest-physical start, length and host address of each region.
    pub fn regions(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.memory
            .iter()
            .map(|r| (r.start_addr().0, r.len(), r.as_ptr() as u64))
    }
}

/// Maps memory where huge pages can be, if it can be had there: guest-physical addresses of regions are
/// multiples of a huge page, so host addresses have to be. Elsewhere it is as good, and slower.
fn map(size: u64) -> Result<MmapRegion, MmapRegionError> {
    let size = size as usize;
    let mut mapping = reserve(size, ACCESS)?;
    // Linux aligns such mappings itself from 6.7 on, if their size is a multiple. Before, it fills address space
    // from the top down: below a pad of the right size the next one is aligned, unless another thread comes between.
    for _ in 0..4 {
        let beyond = mapping.as_ptr() as usize % HUGE_PAGE;
        if beyond == 0 {
            break;
        }
        drop(mapping);
        // Odd, so that it is not aligned itself, and as large as the memory: it must not slip into another gap.
        let pad = reserve(size.next_multiple_of(HUGE_PAGE) + beyond, libc::PROT_NONE)?;
        mapping = reserve(size, ACCESS)?;
        drop(pad);
    }
    Ok(mapping)
}

/// Address space of this process alone; no page of it is there yet.
fn reserve(size: usize, protection: i32) -> Result<MmapRegion, MmapRegionError> {
    MmapRegionBuilder::new(size)
        .with_mmap_prot(protection)
        .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
        .build()
}

fn advise(mapping: &MmapRegion) -> io::Result<()> {
    for (advice, needed) in [
        (libc::MADV_DONTDUMP, true),
        (libc::MADV_DONTFORK, true),
        // Kernels can be built without.
        (libc::MADV_HUGEPAGE, false),
    ] {
        // SAFETY: the range is exactly the mapping; all three leave its content alone.
        let result = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
        if result != 0 && needed {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn size_of_one_mebibyte_is_too_small() {
        assert!(matches!(
            check_size(1 << 20, 48),
            Err(ConfigError::MemoryTooSmall { .. })
        ));
    }

    #[test]
    fn size_of_one_pebibyte_is_too_large_for_48_address_bits() {
        assert!(matches!(
            check_size(1 << 50, 48),
            Err(ConfigError::MemoryTooLarge { .. })
        ));
    }

    #[test]
    fn size_of_half_a_page_is_refused() {
        assert_eq!(
            check_size(MIN_MEMORY + 2048, 48),
            Err(ConfigError::MemoryUnaligned {
                got: MIN_MEMORY + 2048
            })
        );
    }

    #[test]
    fn size_that_fills_the_address_space_leaves_the_gap_out() {
        let max = (1u64 << 40) - (1 << 30);

        assert_eq!(check_size(max, 40), Ok(()));
        assert!(check_size(max + PAGE, 40).is_err());
    }

    #[test]
    fn five_gibibytes_are_reachable_at_both_ends_of_both_regions() {
        let ram = Ram::new(5 << 30).unwrap();

        for address in [
            0,
            LOW_MEMORY_LIMIT - 8,
            HIGH_MEMORY_START,
            HIGH_MEMORY_START + (2 << 30) - 8,
        ] {
            ram.memory()
                .write_obj(0x5aa5u64, GuestAddress(address))
                .unwrap();
        }
        assert!(
            ram.memory()
                .write_obj(1u64, GuestAddress(LOW_MEMORY_LIMIT))
                .is_err()
        );
    }

    #[test]
    fn regions_do_not_share_bytes() {
        let ram = Ram::new(LOW_MEMORY_LIMIT + (1 << 20)).unwrap();

        ram.memory().write_obj(7u64, GuestAddress(0)).unwrap();

        let high: u64 = ram
            .memory()
            .read_obj(GuestAddress(HIGH_MEMORY_START))
            .unwrap();
        assert_eq!(high, 0);
    }

    #[test]
    fn memory_lies_where_huge_pages_can_be() {
        let ram = Ram::new(MIN_MEMORY).unwrap();

        for (_, _, host) in ram.regions() {
            assert_eq!(host % HUGE_PAGE as u64, 0);
        }
    }
}
