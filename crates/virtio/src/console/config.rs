//! The configuration space (§5.3.4).

use std::sync::atomic::{AtomicU32, Ordering};

/// `VIRTIO_CONSOLE_F_SIZE`: `cols` and `rows` are valid.
pub(super) const F_SIZE: u64 = 1;
/// `VIRTIO_CONSOLE_F_EMERG_WRITE`: a byte written to `emerg_wr` is put out at once.
pub(super) const F_EMERG_WRITE: u64 = 1 << 2;
pub(super) const EMERG_WRITE_OFFSET: u64 = 8;

/// The window's size, changed by the host while the guest reads it.
#[derive(Default)]
pub(super) struct WindowSize(AtomicU32);

impl WindowSize {
    pub(super) fn set(&self, columns: u16, rows: u16) {
        self.0.store(
            u32::from(rows) << 16 | u32::from(columns),
            Ordering::Release,
        );
    }

    /// Columns and rows.
    pub(super) fn get(&self) -> (u16, u16) {
        let both = self.0.load(Ordering::Acquire);
        (both as u16, (both >> 16) as u16)
    }

    /// The whole configuration space: `cols`, `rows`, `max_nr_ports`, `emerg_wr`.
    pub(super) fn bytes(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        let (columns, rows) = self.get();
        let fields = columns
            .to_le_bytes()
            .into_iter()
            .chain(rows.to_le_bytes())
            .chain([1]);
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        bytes
    }
}
