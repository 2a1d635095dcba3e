//! The guest memory that every device model works on.

use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// One generation of the guest's memory map.
pub type GuestRam = GuestMemoryMmap<()>;

/// Guest memory as devices hold it: a cheap clone, whose map can be replaced while devices run.
///
/// A device takes one generation with `memory()` per callback and does not keep it between callbacks.
pub type GuestMemory = GuestMemoryAtomic<GuestRam>;
