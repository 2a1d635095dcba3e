//! What QEMU's log tells: triple faults, and writes to the serial port while they are traced.

use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::lines::Lines;
use crate::serial::SerialRegisters;

const LINE_BYTES: usize = 512;

/// What was seen in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogFacts {
    /// A CPU met a triple fault (TCG only).
    pub(crate) triple_fault: bool,
    /// The serial port as far as it was traced.
    pub(crate) serial: SerialRegisters,
}

/// Reads the log to its end, which is QEMU's.
pub(crate) async fn follow(log: pipe::Receiver, facts: watch::Sender<LogFacts>) {
    let mut lines = Lines::new(log, LINE_BYTES);
    while let Ok(Some(line)) = lines.next().await {
        match entry(&line) {
            Some(Entry::TripleFault) => facts.send_modify(|facts| facts.triple_fault = true),
            Some(Entry::SerialWrite { offset, value }) => {
                facts.send_if_modified(|facts| {
                    let before = facts.serial;
                    facts.serial.written(offset, value);
                    facts.serial != before
                });
            }
            None => {}
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Entry {
    TripleFault,
    SerialWrite { offset: u8, value: u8 },
}

fn entry(line: &[u8]) -> Option<Entry> {
    let line = str::from_utf8(line).ok()?.trim_end();
    if line == "Triple fault" {
        return Some(Entry::TripleFault);
    }
    // The trace event's own format, behind process number and time.
    let (_, write) = line.split_once("serial_write write addr 0x")?;
    let (offset, value) = write.split_once(" val 0x")?;
    Some(Entry::SerialWrite {
        offset: u8::from_str_radix(offset, 16).ok()?,
        value: u8::from_str_radix(value, 16).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_told_from_register_dumps() {
        assert_eq!(entry(b"Triple fault"), Some(Entry::TripleFault));
        assert_eq!(
            entry(b"4711@1763874687.123456:serial_write write addr 0x04 val 0x0b"),
            Some(Entry::SerialWrite {
                offset: 4,
                value: 0x0b
            })
        );
        for line in [
            &b"CPU Reset (CPU 0)"[..],
            b"EAX=00000000 EBX=00000000",
            b"serial_write write addr 0x",
            b"serial_write write addr 0xzz val 0x1",
            b"\xff",
            b"",
        ] {
            assert_eq!(entry(line), None);
        }
    }
}
