//! The registers of a 16550A UART, without a host side.
//!
//! *PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs* (National Semiconductor),
//! section 8. Time does not exist here: a byte is transmitted the moment it is written.

use std::collections::VecDeque;

const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_ID: u16 = 2;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;
const SCRATCH: u16 = 7;

const IER_RECEIVED: u8 = 1;
const IER_TRANSMITTER_EMPTY: u8 = 2;
const IER_MASK: u8 = 0x0f;
const IIR_NONE: u8 = 1;
const IIR_TRANSMITTER_EMPTY: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_FIFOS: u8 = 0xc0;
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVER: u8 = 2;
const LCR_DIVISOR: u8 = 0x80;
const MCR_MASK: u8 = 0x1f;
const MCR_LOOP: u8 = 0x10;
const LSR_RECEIVED: u8 = 1;
const LSR_TRANSMITTER_EMPTY: u8 = 0x60;
/// Carrier, data set ready, clear to send.
const MSR_CONNECTED: u8 = 0xb0;

/// Bytes the receiver holds. The chip has 16; drivers read until the line status says that there is
/// no more, and with every byte an exit saved interrupts are worth it.
pub(super) const RECEIVER_ROOM: usize = 64;

/// Reads of the line status in a row by which a driver without interrupts waits for input. One that
/// prints reads it once for each byte.
const POLLS: u8 = 8;

/// What a register write asks of the host side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing.
    Nothing,
    /// To transmit this byte.
    Byte(u8),
}

/// The registers.
#[derive(Debug, Default)]
pub(super) struct Uart {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifos: bool,
    received: VecDeque<u8>,
    /// The transmitter became empty, and the driver has not been told.
    transmitter_empty: bool,
    /// State of the interrupt output as last computed.
    line: bool,
    /// Reads of the line status since anything else was touched.
    polls: u8,
    /// A driver has shown that it waits for input. Drivers throw away what they find in the
    /// receiver when they start; what the host sends before that must not get there.
    listening: bool,
}

impl Uart {
    /// Reads a register. The bool says that [`room`](Self::room) may have grown from nothing.
    pub(super) fn read(&mut self, offset: u16) -> (u8, bool) {
        let mut emptied = false;
        if offset == LINE_STATUS {
            self.polls = self.polls.saturating_add(1);
            self.listening |= self.polls >= POLLS;
        } else {
            self.polls = 0;
        }
        let value = match offset {
            DATA if self.divisor_latched() => self.divisor[0],
            INTERRUPT_ENABLE if self.divisor_latched() => self.divisor[1],
            DATA => {
                let byte = self.received.pop_front();
                emptied = byte.is_some() && self.received.is_empty();
                byte.unwrap_or(0)
            }
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_ID => {
                let id = self.interrupt_id();
                if id == IIR_TRANSMITTER_EMPTY {
                    self.transmitter_empty = false;
                }
                id | if self.fifos { IIR_FIFOS } else { 0 }
            }
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => {
                emptied = self.polls == POLLS;
                LSR_TRANSMITTER_EMPTY
                    | if self.received.is_empty() {
                        0
                    } else {
                        LSR_RECEIVED
                    }
            }
            MODEM_STATUS if self.looped() => {
                // The outputs DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
                let out = self.modem_control;
                (out & 0b1100) << 4 | (out & 1) << 5 | (out & 2) << 3
            }
            MODEM_STATUS => MSR_CONNECTED,
            SCRATCH => self.scratch,
            _ => 0,
        };
        (value, emptied)
    }

    /// Writes a register.
    pub(super) fn write(&mut self, offset: u16, value: u8) -> Written {
        self.polls = 0;
        match offset {
            DATA if self.divisor_latched() => self.divisor[0] = value,
            INTERRUPT_ENABLE if self.divisor_latched() => self.divisor[1] = value,
            DATA if self.looped() => {
                if self.received.len() < RECEIVER_ROOM {
                    self.received.push_back(value);
                }
                self.transmitter_empty = true;
            }
            DATA => {
                self.transmitter_empty = true;
                return Written::Byte(value);
            }
            INTERRUPT_ENABLE => {
                let value = value & IER_MASK;
                // Enabling it while the transmitter is empty raises it (and it always is).
                if value & !self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_empty = true;
                }
                self.interrupt_enable = value;
                self.listening |= value & IER_RECEIVED != 0;
            }
            FIFO_CONTROL => {
                self.fifos = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 {
                    self.received.clear();
                }
            }
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & MCR_MASK,
            SCRATCH => self.scratch = value,
            _ => {}
        }
        Written::Nothing
    }

    /// Bytes the receiver can take now.
    pub(super) fn room(&self) -> usize {
        if self.looped() || !self.listening {
            0
        } else {
            RECEIVER_ROOM.saturating_sub(self.received.len())
        }
    }

    /// Bytes arrive; no more than [`room`](Self::room).
    pub(super) fn receive(&mut self, bytes: &[u8]) {
        self.received.extend(bytes);
    }

    /// Whether the interrupt output has just gone from low to high. To be asked after each change.
    pub(super) fn raised(&mut self) -> bool {
        let line = self.interrupt_id() != IIR_NONE;
        let raised = line && !self.line;
        self.line = line;
        raised
    }

    fn interrupt_id(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVED != 0 && !self.received.is_empty() {
            IIR_RECEIVED
        } else if self.interrupt_enable & IER_TRANSMITTER_EMPTY != 0 && self.transmitter_empty {
            IIR_TRANSMITTER_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn divisor_latched(&self) -> bool {
        self.line_control & LCR_DIVISOR != 0
    }

    fn looped(&self) -> bool {
        self.modem_control & MCR_LOOP != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uart: &mut Uart, offset: u16) -> u8 {
        uart.read(offset).0
    }

    #[test]
    fn transmitter_interrupt_is_raised_by_enabling_and_cleared_by_reading_its_id() {
        let mut uart = Uart::default();

        uart.write(INTERRUPT_ENABLE, IER_TRANSMITTER_EMPTY);

        assert!(uart.raised());
        assert_eq!(read(&mut uart, INTERRUPT_ID), IIR_TRANSMITTER_EMPTY);
        assert!(!uart.raised());
        assert_eq!(read(&mut uart, INTERRUPT_ID), IIR_NONE);
    }

    #[test]
    fn transmitter_interrupt_is_raised_again_by_each_byte() {
        let mut uart = Uart::default();
        uart.write(INTERRUPT_ENABLE, IER_TRANSMITTER_EMPTY);
        uart.raised();
        read(&mut uart, INTERRUPT_ID);
        uart.raised();

        assert_eq!(uart.write(DATA, b'x'), Written::Byte(b'x'));

        assert!(uart.raised());
    }

    #[test]
    fn received_bytes_are_read_in_order_and_the_last_one_empties() {
        let mut uart = Uart::default();
        uart.write(INTERRUPT_ENABLE, IER_RECEIVED);

        uart.receive(b"ab");

        assert!(uart.raised());
        assert_eq!(read(&mut uart, LINE_STATUS) & LSR_RECEIVED, LSR_RECEIVED);
        assert_eq!(uart.read(DATA), (b'a', false));
        assert_eq!(uart.read(DATA), (b'b', true));
        assert_eq!(read(&mut uart, LINE_STATUS) & LSR_RECEIVED, 0);
    }

    #[test]
    fn received_interrupt_comes_before_the_transmitters() {
        let mut uart = Uart::default();
        uart.receive(b"a");

        uart.write(INTERRUPT_ENABLE, IER_RECEIVED | IER_TRANSMITTER_EMPTY);

        assert_eq!(read(&mut uart, INTERRUPT_ID), IIR_RECEIVED);
        read(&mut uart, DATA);
        assert_eq!(read(&mut uart, INTERRUPT_ID), IIR_TRANSMITTER_EMPTY);
    }

    #[test]
    fn receiver_has_no_room_before_a_driver_listens_by_interrupt() {
        let mut uart = Uart::default();
        assert_eq!(uart.room(), 0);

        uart.write(INTERRUPT_ENABLE, IER_RECEIVED);

        assert_eq!(uart.room(), RECEIVER_ROOM);
    }

    #[test]
    fn receiver_has_room_for_a_driver_that_polls_but_not_for_one_that_prints() {
        let mut uart = Uart::default();
        for _ in 0..10 * POLLS {
            uart.read(LINE_STATUS);
            uart.write(DATA, b'x');
        }
        assert_eq!(uart.room(), 0);

        let grown: Vec<bool> = (0..POLLS).map(|_| uart.read(LINE_STATUS).1).collect();

        assert_eq!(grown.iter().filter(|grown| **grown).count(), 1);
        assert_eq!(uart.room(), RECEIVER_ROOM);
    }

    #[test]
    fn enabling_with_received_bytes_waiting_raises() {
        let mut uart = Uart::default();
        uart.receive(b"a");
        assert!(!uart.raised());

        uart.write(INTERRUPT_ENABLE, IER_RECEIVED);

        assert!(uart.raised());
    }

    #[test]
    fn loop_mode_returns_bytes_and_modem_lines() {
        let mut uart = Uart::default();

        uart.write(INTERRUPT_ENABLE, IER_RECEIVED);
        uart.write(MODEM_CONTROL, MCR_LOOP | 0x0a);

        assert_eq!(read(&mut uart, MODEM_STATUS) & 0xf0, 0x90);
        assert_eq!(uart.write(DATA, 0x55), Written::Nothing);
        assert_eq!(read(&mut uart, DATA), 0x55);
        assert_eq!(uart.room(), 0);
    }

    #[test]
    fn loop_mode_cannot_fill_the_receiver_beyond_its_room() {
        let mut uart = Uart::default();
        uart.write(MODEM_CONTROL, MCR_LOOP);

        for _ in 0..10 * RECEIVER_ROOM {
            uart.write(DATA, 1);
        }

        assert_eq!(uart.received.len(), RECEIVER_ROOM);
    }

    #[test]
    fn divisor_latch_hides_data_and_interrupt_enable() {
        let mut uart = Uart::default();

        uart.write(LINE_CONTROL, LCR_DIVISOR);

        assert_eq!(uart.write(DATA, 0x0c), Written::Nothing);
        uart.write(INTERRUPT_ENABLE, 0x01);
        assert_eq!((read(&mut uart, 0), read(&mut uart, 1)), (0x0c, 0x01));
        uart.write(LINE_CONTROL, 3);
        assert_eq!(read(&mut uart, INTERRUPT_ENABLE), 0);
    }

    #[test]
    fn fifo_control_makes_it_a_16550a() {
        let mut uart = Uart::default();

        uart.write(FIFO_CONTROL, FCR_ENABLE);

        assert_eq!(read(&mut uart, INTERRUPT_ID) & IIR_FIFOS, IIR_FIFOS);
        uart.write(FIFO_CONTROL, 0);
        assert_eq!(read(&mut uart, INTERRUPT_ID) & IIR_FIFOS, 0);
    }
}
