//! Guest memory: one sealed memfd, mapped once, split around the 32-bit gap.
//!
//! A memfd (and not anonymous memory) from the first day: it can be handed to another process
//! (vhost-user, snapshots) and mapped copy-on-write.

use std::fs::File;
use std::io;
use std::sync::Arc;

use capsa_virtio::{GuestMemory, GuestRam};
use rustix::fs::{MemfdFlags, SealFlags};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    mmap::MmapRegionBuilder,
};

use super::error::{ConfigError, MachineError, Size};
use super::layout::{self, HIGH_MEMORY_START, LOW_MEMORY_LIMIT};

/// The least memory a machine can have, in bytes. Linux itself does not start in less.
pub const MIN_MEMORY: u64 = 32 << 20;
const PAGE: u64 = 4096;

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
        let memfd = rustix::fs::memfd_create(
            "capsa-guest-memory",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(|e| failed("creating the memory file")(e.into()))?;
        rustix::fs::ftruncate(&memfd, bytes)
            .map_err(|e| failed("sizing the memory file")(e.into()))?;
        // Nobody the file is ever handed to can shrink it under us.
        rustix::fs::fcntl_add_seals(
            &memfd,
            SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )
        .map_err(|e| failed("sealing the memory file")(e.into()))?;

        let file = Arc::new(File::from(memfd));
        let mut regions = Vec::with_capacity(2);
        let mut offset = 0;
        for range in layout::ram_ranges(bytes) {
            let mapping = map(&file, offset, range.size)
                .map_err(|e| failed("mapping it")(io::Error::other(e)))?;
            advise(&mapping).map_err(failed("advising the host about it"))?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.start))
                .ok_or_else(|| failed("placing it")(io::ErrorKind::InvalidInput.into()))?;
            regions.push(region);
            offset += range.size;
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

fn map(
    file: &Arc<File>,
    offset: u64,
    size: u64,
) -> Result<MmapRegion, vm_memory::mmap::MmapRegionError> {
    MmapRegionBuilder::new(size as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(file.clone(), offset))
        .build()
}

fn advise(mapping: &MmapRegion) -> io::Result<()> {
    for advice in [libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
        // SAFETY: the range is exactly the mapping; both kinds of advice leave its content alone.
        let result = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), advice) };
        if result != 0 {
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
    fn regions_do_not_share_bytes_of_the_memory_file() {
        let ram = Ram::new(LOW_MEMORY_LIMIT + (1 << 20)).unwrap();

        ram.memory().write_obj(7u64, GuestAddress(0)).unwrap();

        let high: u64 = ram
            .memory()
            .read_obj(GuestAddress(HIGH_MEMORY_START))
            .unwrap();
        assert_eq!(high, 0);
    }

    #[test]
    fn memory_file_cannot_be_resized() {
        let ram = Ram::new(MIN_MEMORY).unwrap();
        let region = ram.memory().iter().next().unwrap();
        let file = region.file_offset().unwrap().file();

        assert!(file.set_len(MIN_MEMORY / 2).is_err());
        assert!(file.set_len(MIN_MEMORY * 2).is_err());
    }
}
