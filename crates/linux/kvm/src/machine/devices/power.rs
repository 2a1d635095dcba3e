//! The power block: ACPI sleep and reset registers, and the power button.
//!
//! *ACPI 6.5* §4.8.3.6 (reset register), §4.8.3.7 (sleep registers), §5.6.9 (generic event device).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use capsa_virtio::InterruptLine;

use super::bus::BusDevice;
use crate::machine::acpi::SLEEP_TYPE_S5;
use crate::machine::control::Control;
use crate::machine::end::MachineEnd;

/// Offset of the sleep control register from [`POWER_PORT`](crate::machine::layout::POWER_PORT).
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// What resets when written to it.
pub const RESET_VALUE: u8 = 1;
/// Offset of the power button's status; reading clears it.
pub const BUTTON_STATUS: u16 = 3;
/// Bit of the status: the button was pressed.
pub const BUTTON_PRESSED: u8 = 1;
/// Ports taken.
pub const PORTS: u16 = 4;

/// Sleep control: go to the sleep state whose type is in bits 2 to 4.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// The power block.
pub struct Power {
    control: Arc<Control>,
    line: Arc<dyn InterruptLine>,
    button: AtomicU8,
}

impl Power {
    /// A power block whose button raises `line`.
    pub fn new(control: Arc<Control>, line: Arc<dyn InterruptLine>) -> Self {
        Self {
            control,
            line,
            button: AtomicU8::new(0),
        }
    }

    /// Presses the power button: the guest's ACPI driver is told, and does with it what it likes.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn press_button(&self) -> io::Result<()> {
        self.button.fetch_or(BUTTON_PRESSED, Ordering::SeqCst);
        self.line.trigger()
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u16, data: &mut [u8]) {
        data.fill(0);
        if let (BUTTON_STATUS, [first, ..]) = (offset, data) {
            *first = self.button.swap(0, Ordering::SeqCst);
        }
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
        if offset == SLEEP_CONTROL && value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
            self.control.end(MachineEnd::PoweredOff);
        } else if offset == RESET && *value == RESET_VALUE {
            self.control.end(MachineEnd::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Line(AtomicUsize);

    impl InterruptLine for Line {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn power() -> (Arc<Control>, Arc<Line>, Power) {
        let control = Arc::new(Control::new().unwrap());
        let line = Arc::new(Line::default());
        let power = Power::new(control.clone(), line.clone());
        (control, line, power)
    }

    #[test]
    fn sleep_type_5_with_enable_powers_off() {
        let (control, _, power) = power();

        power.write(SLEEP_CONTROL, &[5 << 2 | 1 << 5]);

        assert_eq!(control.end_reason(), Some(MachineEnd::PoweredOff));
    }

    #[test]
    fn sleep_without_enable_or_of_another_type_does_nothing() {
        let (control, _, power) = power();

        power.write(SLEEP_CONTROL, &[5 << 2]);
        power.write(SLEEP_CONTROL, &[3 << 2 | 1 << 5]);

        assert_eq!(control.end_reason(), None);
    }

    #[test]
    fn reset_value_resets() {
        let (control, _, power) = power();

        power.write(RESET, &[RESET_VALUE]);

        assert_eq!(control.end_reason(), Some(MachineEnd::Reset));
    }

    #[test]
    fn button_press_raises_the_line_and_is_read_once() {
        let (_, line, power) = power();
        let mut first = [0];
        let mut second = [0];

        power.press_button().unwrap();
        power.read(BUTTON_STATUS, &mut first);
        power.read(BUTTON_STATUS, &mut second);

        assert_eq!(line.0.load(Ordering::SeqCst), 1);
        assert_eq!((first, second), ([BUTTON_PRESSED], [0]));
    }
}
