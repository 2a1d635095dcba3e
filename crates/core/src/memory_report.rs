use serde::{Deserialize, Serialize};

/// What a guest's balloon driver tells of the guest's memory. Sizes are in bytes, counts are since
/// the boot; `None` is what this guest does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MemoryReport {
    /// What the host asks the guest to give to it.
    pub balloon_target: u64,
    /// What the guest has given.
    pub balloon_actual: u64,
    /// Free memory that the guest has reported, and that went back to the host, so far. The guest
    /// takes it again when it likes, so this is not a part of what it has. `None` where the backend does
    /// not count it (QEMU).
    pub reported_free: Option<u64>,
    /// All memory that the guest can use.
    pub total: Option<u64>,
    /// Unused memory.
    pub free: Option<u64>,
    /// What could be used without swapping.
    pub available: Option<u64>,
    /// Caches of files.
    pub disk_caches: Option<u64>,
    /// Read from swap.
    pub swapped_in: Option<u64>,
    /// Written to swap.
    pub swapped_out: Option<u64>,
    /// How many page faults needed a disk.
    pub major_faults: Option<u64>,
    /// How many did not.
    pub minor_faults: Option<u64>,
}
