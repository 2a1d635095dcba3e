/// Why a virtqueue cannot be used (any longer). Each of these makes the device ask for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The driver chose a size that is zero, not a power of two, or above the device's maximum.
    #[error("queue size {size} is not a power of two from 1 to {max}")]
    Size {
        /// What the driver asked for.
        size: u16,
        /// The device's maximum.
        max: u16,
    },
    /// A ring is not aligned as §2.7 asks for.
    #[error("the {ring} at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which of the three rings.
        ring: &'static str,
        /// Where the driver put it.
        address: u64,
        /// What it has to be a multiple of.
        alignment: u64,
    },
    /// A ring is not wholly inside guest memory.
    #[error("the {ring} at {address:#x} is not in guest memory")]
    RingOutside {
        /// Which of the three rings.
        ring: &'static str,
        /// Where the driver put it.
        address: u64,
    },
    /// A queue was used before it was set up.
    #[error("queue {0} is not ready")]
    NotReady(u16),
    /// More buffers were announced than the queue can hold.
    #[error("the available index moved by {by}, the queue has {size} entries")]
    AvailableIndex {
        /// Announced but not yet taken entries.
        by: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor number is outside its table.
    #[error("descriptor {index} is outside its table of {size}")]
    DescriptorIndex {
        /// The number found.
        index: u16,
        /// Entries in the table.
        size: u32,
    },
    /// A chain has more descriptors than its table (so it loops), or than this device accepts.
    #[error("a descriptor chain is longer than {limit}")]
    ChainTooLong {
        /// The longest chain accepted.
        limit: u32,
    },
    /// A chain describes 4 GiB or more, which §2.7.5 forbids.
    #[error("a descriptor chain describes 4 GiB or more")]
    ChainTooLarge,
    /// A buffer is not wholly inside guest memory.
    #[error("the buffer of {len} bytes at {address:#x} is not in guest memory")]
    BufferOutside {
        /// Its guest address.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A device-readable descriptor follows a device-writable one.
    #[error("a readable descriptor follows a writable one")]
    Direction,
    /// An indirect descriptor that was not negotiated, is nested, has a `NEXT` flag, or whose table has a bad length.
    #[error("indirect descriptor: {0}")]
    Indirect(&'static str),
    /// A ring or buffer that was there has left guest memory.
    #[error("guest memory at {0:#x} is gone")]
    MemoryGone(u64),
}
