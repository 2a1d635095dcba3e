//! Waits for the default initramfs to say that its shell reads the console.
//!
//! What the guest is sent before its init has set the console to raw would be echoed into the
//! output. So init is given a mark (`capsa.ready=MARK`), which it writes as a line of its own when it
//! is ready; standard input is fed from then on, and the mark is taken out of the output.

/// Nothing else writes this as a line of its own: where the kernel shows its command line, other
/// text stands before it.
const MARK: &str = "capsa-console-ready-8f1c6a52";

/// The kernel parameter that asks for the mark.
pub(super) fn parameter() -> String {
    format!("capsa.ready={MARK}")
}

/// Takes the mark's line out of a stream of bytes.
#[derive(Debug)]
pub(super) struct MarkFilter {
    /// What may be the beginning of the mark, and is not passed on before that is known.
    held: Vec<u8>,
    at_line_start: bool,
}

/// What a piece of output came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Filtered {
    /// To be passed on; the mark did not come yet.
    Waiting(Vec<u8>),
    /// To be passed on: what stood before the mark, and what came behind it. It came.
    Ready(Vec<u8>),
}

impl MarkFilter {
    pub(super) fn new() -> Self {
        Self {
            held: Vec::new(),
            at_line_start: true,
        }
    }

    pub(super) fn pass(&mut self, bytes: &[u8]) -> Filtered {
        let mut passed = Vec::with_capacity(bytes.len());
        for (index, byte) in bytes.iter().enumerate() {
            if self.is_next(*byte) {
                if *byte == b'\n' {
                    passed.extend_from_slice(bytes.get(index + 1..).unwrap_or_default());
                    self.held.clear();
                    return Filtered::Ready(passed);
                }
                self.held.push(*byte);
                continue;
            }
            passed.append(&mut self.held);
            self.at_line_start = matches!(byte, b'\n' | b'\r');
            passed.push(*byte);
        }
        Filtered::Waiting(passed)
    }

    /// Whether `byte` continues a line of the mark alone.
    fn is_next(&self, byte: u8) -> bool {
        if !self.at_line_start {
            return false;
        }
        let mark = MARK.as_bytes();
        match mark.get(self.held.len()) {
            Some(expected) => *expected == byte,
            None if self.held.len() == mark.len() => matches!(byte, b'\r' | b'\n'),
            None => byte == b'\n',
        }
    }

    /// What is still held when the output has ended without the mark.
    pub(super) fn finish(self) -> Vec<u8> {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Filters `text` in pieces of `size`; what was passed on and whether the mark came.
    fn filter(text: &str, size: usize) -> (String, bool) {
        let mut filter = MarkFilter::new();
        let mut passed = Vec::new();
        let mut pieces = text.as_bytes().chunks(size);
        let ready = pieces.by_ref().any(|piece| match filter.pass(piece) {
            Filtered::Waiting(bytes) => {
                passed.extend(bytes);
                false
            }
            Filtered::Ready(bytes) => {
                passed.extend(bytes);
                true
            }
        });
        passed.extend(filter.finish());
        passed.extend(pieces.flatten());
        (String::from_utf8(passed).unwrap(), ready)
    }

    #[test]
    fn the_marks_line_is_taken_out_and_nothing_else() {
        for (text, expected, ready) in [
            (format!("{MARK}\nx"), "x".to_owned(), true),
            (
                format!("boot\r\n{MARK}\r\nx\n"),
                "boot\r\nx\n".to_owned(),
                true,
            ),
            (format!("{MARK}\n{MARK}\n"), format!("{MARK}\n"), true),
            (
                format!("line: quiet capsa.ready={MARK}\nx"),
                format!("line: quiet capsa.ready={MARK}\nx"),
                false,
            ),
            (format!("{MARK}er\n"), format!("{MARK}er\n"), false),
            (format!("cap\n{MARK}\n"), "cap\n".to_owned(), true),
            ("capsa-con".to_owned(), "capsa-con".to_owned(), false),
        ] {
            for size in 1..=text.len() {
                assert_eq!(
                    filter(&text, size),
                    (expected.clone(), ready),
                    "{text:?}, {size}"
                );
            }
        }
    }

    #[test]
    fn a_prompt_without_a_newline_is_passed_on_at_once() {
        let passed = MarkFilter::new().pass(b"login: ");
        assert_eq!(passed, Filtered::Waiting(b"login: ".to_vec()));
    }
}
