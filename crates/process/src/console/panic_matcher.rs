/// How much of a panic's message is kept, in bytes (see [`capsa_core::GuestPanic`]).
pub const MAX_PANIC_MESSAGE_BYTES: usize = 1 << 10;

/// What Linux prints when its kernel panics (`vpanic` in `kernel/panic.c`). The message follows.
const START: &[u8] = b"Kernel panic - not syncing: ";
/// The same words end the report; they are not a second panic.
const END_MARK: &[u8] = b"---[ end ";

/// A panic that a console showed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PanicText {
    /// What stood behind `Kernel panic - not syncing:`, without control characters.
    pub message: String,
}

/// Finds a kernel panic in console output that comes in pieces.
#[derive(Debug, Default)]
pub struct PanicMatcher {
    /// The current line as far as it matters: its start, up to a limit.
    line: Vec<u8>,
    found: Option<PanicText>,
}

impl PanicMatcher {
    /// The longest part of a line that is looked at: time stamp, words and message.
    const LINE_BYTES: usize = 128 + MAX_PANIC_MESSAGE_BYTES;

    /// Looks at the next piece.
    pub fn feed(&mut self, piece: &[u8]) {
        for part in piece.split_inclusive(|&byte| byte == b'\n') {
            let room = Self::LINE_BYTES.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.take_line();
            }
        }
    }

    /// The last panic that was shown, the current line included.
    pub fn finish(mut self) -> Option<PanicText> {
        self.take_line();
        self.found
    }

    fn take_line(&mut self) {
        if let Some(at) = find(&self.line, START)
            && find(&self.line[..at], END_MARK).is_none()
        {
            let message = &self.line[at + START.len()..];
            let message = &message[..message.len().min(MAX_PANIC_MESSAGE_BYTES)];
            let mut message = String::from_utf8_lossy(message).into_owned();
            message.retain(|character| !character.is_control());
            self.found = Some(PanicText { message });
        }
        self.line.clear();
    }
}

fn find(text: &[u8], words: &[u8]) -> Option<usize> {
    text.windows(words.len()).position(|window| window == words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &[u8] = b"boot\n[    1.5] Kernel panic - not syncing: sysrq triggered crash\r\n\
        [    1.6] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\n";

    fn message(pieces: &[&[u8]]) -> Option<String> {
        let mut matcher = PanicMatcher::default();
        for piece in pieces {
            matcher.feed(piece);
        }
        matcher.finish().map(|panic| panic.message)
    }

    #[test]
    fn a_panic_is_found_with_its_message() {
        assert_eq!(message(&[REPORT]).as_deref(), Some("sysrq triggered crash"));
    }

    #[test]
    fn a_panic_is_found_however_the_output_is_cut() {
        let bytes: Vec<&[u8]> = REPORT.chunks(1).collect();
        assert_eq!(message(&bytes).as_deref(), Some("sysrq triggered crash"));
        for cut in 0..REPORT.len() {
            let (before, after) = REPORT.split_at(cut);
            assert!(message(&[before, after]).is_some(), "cut at {cut}");
        }
    }

    #[test]
    fn a_message_without_a_newline_counts() {
        assert_eq!(
            message(&[b"Kernel panic - not syncing: gone"]).as_deref(),
            Some("gone")
        );
    }

    #[test]
    fn ordinary_output_is_no_panic() {
        assert_eq!(
            message(&[b"Kernel panic is a term\n", b"not syncing: x\n"]),
            None
        );
    }

    #[test]
    fn a_line_without_end_stays_bounded() {
        let mut matcher = PanicMatcher::default();
        for _ in 0..1000 {
            matcher.feed(&[b'x'; 4096]);
        }
        assert!(matcher.line.len() <= PanicMatcher::LINE_BYTES);
    }
}
