//! What is left of the keyboard controller: the reset line.
//!
//! Kernels without ACPI reset by command 0xfe at port 0x64. There is no keyboard. The status always
//! shows a byte to be read and never a full input buffer: a kernel that looks for a controller
//! gives up after 16 bytes, and one that wants to reset does not wait.

use std::sync::Arc;

use super::bus::BusDevice;
use crate::machine::control::Control;
use crate::machine::end::MachineEnd;

/// First port; two devices' worth of nothing lie between data and command port.
pub const PORT: u16 = 0x60;
/// Ports taken.
pub const PORTS: u16 = 5;
const COMMAND: u16 = 4;
const COMMAND_RESET: u8 = 0xfe;
const STATUS_OUTPUT_FULL: u8 = 1;

/// The controller.
pub struct I8042 {
    control: Arc<Control>,
}

impl I8042 {
    /// A controller that resets the machine behind `control`.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }
}

impl BusDevice for I8042 {
    fn read(&self, offset: u16, data: &mut [u8]) {
        // Port 0x61 (speaker, NMI status) reads as zero, as do the data and the unused ports.
        data.fill(if offset == COMMAND {
            STATUS_OUTPUT_FULL
        } else {
            0
        });
    }

    fn write(&self, offset: u16, data: &[u8]) {
        if offset == COMMAND && data.contains(&COMMAND_RESET) {
            self.control.end(MachineEnd::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_command_resets_the_machine() {
        let control = Arc::new(Control::new().unwrap());

        I8042::new(control.clone()).write(COMMAND, &[COMMAND_RESET]);

        assert_eq!(control.end_reason(), Some(MachineEnd::Reset));
    }

    #[test]
    fn other_bytes_and_ports_do_not_reset() {
        let control = Arc::new(Control::new().unwrap());
        let device = I8042::new(control.clone());

        device.write(COMMAND, &[0x20]);
        device.write(0, &[COMMAND_RESET]);

        assert_eq!(control.end_reason(), None);
    }
}
