//! What the guest tells of its memory (§5.5.6.4).

use crate::queue::Cursor;
use crate::{Chain, DeviceError, GuestRam};

/// Bytes of one entry: a tag and a value.
const ENTRY: u64 = 10;
/// There are some ten kinds; a guest may repeat itself, but not for ever.
const MAX_ENTRIES: u64 = 64;

/// The guest's view of its memory. `None` is what it does not tell. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct BalloonStatistics {
    /// Read from swap so far.
    pub swapped_in: Option<u64>,
    /// Written to swap so far.
    pub swapped_out: Option<u64>,
    /// Page faults that needed a disk, so far.
    pub major_faults: Option<u64>,
    /// All page faults so far.
    pub minor_faults: Option<u64>,
    /// Unused memory.
    pub free: Option<u64>,
    /// All memory.
    pub total: Option<u64>,
    /// Memory that could be used without swapping.
    pub available: Option<u64>,
    /// Page cache.
    pub disk_caches: Option<u64>,
    /// Huge pages made so far.
    pub huge_page_allocations: Option<u64>,
    /// Huge pages that could not be made so far.
    pub huge_page_failures: Option<u64>,
}

impl BalloonStatistics {
    pub(super) fn read(chain: &Chain, ram: &GuestRam) -> Result<Self, DeviceError> {
        let mut statistics = Self::default();
        let mut cursor = Cursor::new(chain.readable());
        for _ in 0..(cursor.remaining() / ENTRY).min(MAX_ENTRIES) {
            let mut raw = [0; ENTRY as usize];
            cursor.read_exact(ram, &mut raw)?;
            let [t0, t1, value @ ..] = raw;
            statistics.set(u16::from_le_bytes([t0, t1]), u64::from_le_bytes(value));
        }
        Ok(statistics)
    }

    fn set(&mut self, tag: u16, value: u64) {
        let field = match tag {
            0 => &mut self.swapped_in,
            1 => &mut self.swapped_out,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free,
            5 => &mut self.total,
            6 => &mut self.available,
            7 => &mut self.disk_caches,
            8 => &mut self.huge_page_allocations,
            9 => &mut self.huge_page_failures,
            // Newer kinds are allowed to come.
            _ => return,
        };
        *field = Some(value);
    }
}
