//! Root file systems and initramfs archives for guests.

pub mod cpio;
