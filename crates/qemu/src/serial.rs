//! When the guest is ready for serial input.
//!
//! A serial port loses what it is sent before the guest's driver has set it up: the driver clears
//! the receive buffer. A real terminal waits for the port's RTS line for that reason; QEMU does not
//! show the line on a socket. So it is read from the port's registers, and where it is not up yet,
//! QEMU is asked to log the writes to them until it is.

/// I/O ports of the first serial port's interrupt enable, line control and modem control
/// registers.
pub(crate) const PORTS: [u16; 3] = [0x3f8 + 1, 0x3f8 + 3, 0x3f8 + 4];

const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;

/// Interrupt enable: received data.
const RECEIVED_DATA: u8 = 1 << 0;
/// Line control: the interrupt enable register is the divisor's high byte.
const DIVISOR_ACCESS: u8 = 1 << 7;
/// Modem control: ready to receive.
const REQUEST_TO_SEND: u8 = 1 << 1;
/// Modem control: the port talks to itself.
const LOOPBACK: u8 = 1 << 4;

/// The registers of a 16550 that tell whether the guest listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SerialRegisters {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
}

impl SerialRegisters {
    /// From what [`PORTS`] read.
    pub(crate) fn new([interrupt_enable, line_control, modem_control]: [u8; 3]) -> Self {
        Self {
            interrupt_enable,
            line_control,
            modem_control,
        }
    }

    /// The guest wrote `value` to the register at `offset` from the port's first.
    pub(crate) fn written(&mut self, offset: u8, value: u8) {
        match offset {
            INTERRUPT_ENABLE if self.line_control & DIVISOR_ACCESS == 0 => {
                self.interrupt_enable = value;
            }
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value,
            _ => {}
        }
    }

    /// Whether the guest listens: it wants an interrupt for each byte and raises RTS.
    pub(crate) fn listens(&self) -> bool {
        self.line_control & DIVISOR_ACCESS == 0
            && self.interrupt_enable & RECEIVED_DATA != 0
            && self.modem_control & (REQUEST_TO_SEND | LOOPBACK) == REQUEST_TO_SEND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_listens_only_when_it_has_finished_its_setup() {
        // What Linux's 8250 driver writes: its tests, then its start-up, then its line settings.
        let writes = [
            (1, 0x0f),
            (4, 0x1a), // loopback test with RTS
            (4, 0x00),
            (1, 0x00),
            (3, 0x03),
            (1, 0x05), // start-up ends
            (3, 0x83), // line settings: divisor
            (0, 0x01),
            (1, 0x00),
            (3, 0x13),
        ];
        let mut registers = SerialRegisters::default();
        for (offset, value) in writes {
            registers.written(offset, value);
            assert!(!registers.listens(), "after {value:#x} to {offset}");
        }

        registers.written(4, 0x0b);

        assert!(registers.listens());
    }
}
