//! Which device answers at which I/O port.

use std::sync::Arc;

/// A device that answers reads and writes, several vCPUs at once.
///
/// Offsets count from the start of the device's range. `data` is as long as the access, or longer
/// where the guest used a string instruction.
pub trait BusDevice: Send + Sync {
    /// The guest reads; every byte of `data` must be set.
    fn read(&self, offset: u16, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u16, data: &[u8]);
}

/// What a bus line reads as when nothing drives it.
const FLOATING: u8 = 0xff;

struct Entry {
    start: u16,
    len: u16,
    device: Arc<dyn BusDevice>,
}

/// The I/O ports.
#[derive(Default)]
pub struct PortBus {
    // Sorted by start, without overlaps. A handful of entries.
    entries: Vec<Entry>,
}

impl PortBus {
    /// Puts a device at `len` ports from `start`. A range that overlaps another one is refused with
    /// `false`: the map is fixed, so that this is a mistake in the monitor.
    #[must_use]
    pub fn insert(&mut self, start: u16, len: u16, device: Arc<dyn BusDevice>) -> bool {
        let at = self.entries.partition_point(|e| e.start < start);
        let end = u32::from(start) + u32::from(len);
        let before = at.checked_sub(1).and_then(|i| self.entries.get(i));
        let free = before.is_none_or(|e| u32::from(e.start) + u32::from(e.len) <= u32::from(start))
            && self
                .entries
                .get(at)
                .is_none_or(|e| end <= u32::from(e.start));
        if free {
            self.entries.insert(at, Entry { start, len, device });
        }
        free
    }

    fn find(&self, port: u16) -> Option<(&dyn BusDevice, u16)> {
        let at = self.entries.partition_point(|e| e.start <= port);
        let entry = self.entries.get(at.checked_sub(1)?)?;
        let offset = port - entry.start;
        (offset < entry.len).then_some((&*entry.device, offset))
    }

    /// The guest reads from `port`. Ports without a device read as all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match self.find(port) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(FLOATING),
        }
    }

    /// The guest writes to `port`. Ports without a device take everything.
    pub fn write(&self, port: u16, data: &[u8]) {
        if let Some((device, offset)) = self.find(port) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&self, offset: u16, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _: u16, _: &[u8]) {}
    }

    fn read(bus: &PortBus, port: u16) -> u8 {
        let mut data = [0];
        bus.read(port, &mut data);
        data[0]
    }

    #[test]
    fn port_in_a_range_reaches_its_device_with_its_offset() {
        let mut bus = PortBus::default();
        assert!(bus.insert(0x3f8, 8, Arc::new(Echo(0x10))));
        assert!(bus.insert(0x60, 1, Arc::new(Echo(0x20))));

        assert_eq!(read(&bus, 0x3f8), 0x10);
        assert_eq!(read(&bus, 0x3ff), 0x17);
        assert_eq!(read(&bus, 0x60), 0x20);
    }

    #[test]
    fn port_without_a_device_reads_all_ones() {
        let mut bus = PortBus::default();
        assert!(bus.insert(0x3f8, 8, Arc::new(Echo(0))));

        for port in [0, 0x3f7, 0x400, 0xffff] {
            assert_eq!(read(&bus, port), 0xff);
        }
    }

    #[test]
    fn overlapping_range_is_refused() {
        let mut bus = PortBus::default();
        assert!(bus.insert(0x3f8, 8, Arc::new(Echo(0))));

        assert!(!bus.insert(0x3ff, 1, Arc::new(Echo(0))));
        assert!(!bus.insert(0x3f0, 9, Arc::new(Echo(0))));
        assert!(bus.insert(0x3f0, 8, Arc::new(Echo(0))));
        assert!(bus.insert(0x400, 1, Arc::new(Echo(0))));
    }
}
