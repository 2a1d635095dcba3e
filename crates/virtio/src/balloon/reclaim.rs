//! Giving guest memory back to the host.

use std::io;

use rustix::fs::{FallocateFlags, fallocate};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::GuestRam;

/// Gives back the whole host pages between `start` and `start + len`, as far as there is memory. The guest reads zeroes
/// there afterwards (or, in a private copy of a file, the file's content). Returns how many bytes went.
///
/// # Errors
/// What the host said; nothing is lost but the gain.
pub(super) fn discard(ram: &GuestRam, start: u64, len: u64) -> io::Result<u64> {
    let page = page_size();
    let end = start.saturating_add(len);
    let mut all = 0;
    for region in ram.iter() {
        let first = region.start_addr().raw_value();
        let from = start.max(first).next_multiple_of(page);
        let to = end.min(first.saturating_add(region.len())) / page * page;
        if from < to {
            discard_in(region, GuestAddress(from), to - from)?;
            all += to - from;
        }
    }
    Ok(all)
}

/// What the C library was told at the start: asking the kernel again takes calls that a confined thread
/// does not have.
fn page_size() -> u64 {
    // SAFETY: it reads a number.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}

fn discard_in(region: &GuestRegionMmap<()>, from: GuestAddress, len: u64) -> io::Result<()> {
    let Some(offset) = region.to_region_addr(from) else {
        return Ok(());
    };
    let shared = region.flags() & libc::MAP_SHARED != 0;
    if let (Some(file), true) = (region.file_offset(), shared) {
        // The mapping alone would not do: the pages belong to the file.
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let at = file.start() + offset.raw_value();
        return Ok(fallocate(file.file(), flags, at, len)?);
    }
    let Ok(host) = region.get_host_address(offset) else {
        return Ok(());
    };
    // SAFETY: the range is inside this mapping of guest memory, which nothing on the host has Rust references into; that
    // the guest finds zeroes there is what it asked for.
    unsafe {
        rustix::mm::madvise(host.cast(), len as usize, rustix::mm::Advice::LinuxDontNeed)?;
    }
    Ok(())
}
