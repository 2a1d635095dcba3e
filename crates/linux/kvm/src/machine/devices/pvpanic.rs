//! The pvpanic device: one byte to which a guest says that it panicked.
//!
//! *QEMU, docs/specs/pvpanic*: bit 0 "panicked", bit 1 "a crash kernel takes over". Reading gives
//! the bits that are understood.

use std::sync::Arc;

use super::bus::BusDevice;
use crate::machine::control::Control;
use crate::machine::end::MachineEnd;

const PANICKED: u8 = 1;

/// The device.
pub struct PvPanic {
    control: Arc<Control>,
}

impl PvPanic {
    /// A device that ends the machine behind `control`.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }
}

impl BusDevice for PvPanic {
    fn read(&self, _: u16, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&self, _: u16, data: &[u8]) {
        if data.iter().any(|byte| byte & PANICKED != 0) {
            self.control.end(MachineEnd::GuestPanic { message: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panicked_bit_ends_the_machine_with_the_message_of_the_console() {
        let control = Arc::new(Control::new().unwrap());
        control
            .panics()
            .stream()
            .feed(b"Kernel panic - not syncing: boom\n");
        let device = PvPanic::new(control.clone());

        device.write(0, &[1]);

        assert_eq!(
            control.end_reason(),
            Some(MachineEnd::GuestPanic {
                message: Some("boom".into())
            })
        );
    }

    #[test]
    fn crash_kernel_bit_alone_does_not_end_the_machine() {
        let control = Arc::new(Control::new().unwrap());

        PvPanic::new(control.clone()).write(0, &[2]);

        assert_eq!(control.end_reason(), None);
    }
}
