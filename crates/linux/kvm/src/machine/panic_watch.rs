//! Looks for a kernel panic in what the guest prints.
//!
//! Distribution kernels rarely have the pvpanic driver loaded, and with `panic=-1` their panic is a
//! mere reset. So the console output is searched as it streams by, and a reset after a panic line
//! is reported as the panic.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What Linux prints first when it panics.
const NEEDLE: &[u8] = b"Kernel panic - not syncing:";
/// More of the line than anybody reads; the guest decides how long the line is.
const MESSAGE_MAX: usize = 1024;

/// What was found in any of a machine's consoles.
#[derive(Debug, Clone, Default)]
pub struct PanicWatch {
    message: Arc<Mutex<Option<String>>>,
}

impl PanicWatch {
    /// A watch for one console's output.
    pub fn stream(&self) -> PanicStream {
        PanicStream {
            message: Arc::clone(&self.message),
            state: State::Searching { matched: 0 },
        }
    }

    /// The first panic's message, if there was a panic. It may be cut while its line is still
    /// being printed.
    pub fn message(&self) -> Option<String> {
        lock(&self.message)
            .as_deref()
            .map(|message| message.trim().to_owned())
    }
}

/// One console's output.
#[derive(Debug)]
pub struct PanicStream {
    message: Arc<Mutex<Option<String>>>,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Searching { matched: usize },
    Capturing,
    Done,
}

impl PanicStream {
    /// Takes the next bytes of the output, however they are cut.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        loop {
            match self.state {
                State::Done => return,
                State::Searching { matched } => {
                    let Some(rest) = self.search(matched, bytes) else {
                        return;
                    };
                    bytes = rest;
                }
                State::Capturing => return self.capture(bytes),
            }
        }
    }

    /// Returns what follows the needle, once it has been seen whole.
    fn search<'b>(&mut self, mut matched: usize, bytes: &'b [u8]) -> Option<&'b [u8]> {
        for (at, byte) in bytes.iter().enumerate() {
            // The needle's first byte occurs nowhere else in it, so a mismatch starts over.
            matched = match NEEDLE.get(matched) {
                Some(expected) if expected == byte => matched + 1,
                _ => usize::from(NEEDLE.first() == Some(byte)),
            };
            if matched == NEEDLE.len() {
                let mut message = lock(&self.message);
                // Another console may have had it first: both print the same.
                self.state = if message.is_some() {
                    State::Done
                } else {
                    *message = Some(String::new());
                    State::Capturing
                };
                return bytes.get(at + 1..);
            }
        }
        self.state = State::Searching { matched };
        None
    }

    fn capture(&mut self, bytes: &[u8]) {
        let mut message = lock(&self.message);
        let text = message.get_or_insert_default();
        for byte in bytes {
            if matches!(byte, b'\n' | b'\r') || text.len() >= MESSAGE_MAX {
                self.state = State::Done;
                return;
            }
            let printable = byte.is_ascii_graphic() || *byte == b' ';
            text.push(if printable { char::from(*byte) } else { '?' });
        }
    }
}

fn lock(message: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    message.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        b"[    1.234567] Kernel panic - not syncing: sysrq triggered crash\r\n[    1.3] CPU: 0\r\n";

    #[test]
    fn panic_line_gives_its_message() {
        let watch = PanicWatch::default();

        watch.stream().feed(LINE);

        assert_eq!(watch.message().as_deref(), Some("sysrq triggered crash"));
    }

    #[test]
    fn panic_line_cut_at_every_byte_gives_its_message() {
        let watch = PanicWatch::default();
        let mut stream = watch.stream();

        for byte in LINE {
            stream.feed(std::slice::from_ref(byte));
        }

        assert_eq!(watch.message().as_deref(), Some("sysrq triggered crash"));
    }

    #[test]
    fn panic_line_after_a_false_start_is_found() {
        let watch = PanicWatch::default();

        watch
            .stream()
            .feed(b"Kernel paKernel panic - not syncing: x\n");

        assert_eq!(watch.message().as_deref(), Some("x"));
    }

    #[test]
    fn ordinary_output_is_no_panic() {
        let watch = PanicWatch::default();

        watch
            .stream()
            .feed(b"Kernel command line: panic=-1\r\nKernel panic - syncing\n");

        assert_eq!(watch.message(), None);
    }

    #[test]
    fn second_console_does_not_mix_into_the_message_of_the_first() {
        let watch = PanicWatch::default();
        let (mut first, mut second) = (watch.stream(), watch.stream());

        first.feed(b"Kernel panic - not syncing: one");
        second.feed(b"Kernel panic - not syncing: two\n");
        first.feed(b" more\n");

        assert_eq!(watch.message().as_deref(), Some("one more"));
    }

    #[test]
    fn endless_panic_line_is_bounded() {
        let watch = PanicWatch::default();
        let mut stream = watch.stream();

        stream.feed(NEEDLE);
        for _ in 0..100 {
            stream.feed(&[b'x'; 100]);
        }

        assert_eq!(watch.message().unwrap().len(), MESSAGE_MAX);
    }
}
