use std::collections::VecDeque;

/// How much of a child's error output is kept, in bytes.
pub const LAST_WORDS_BYTES: usize = 16 << 10;

/// The end of a child's error output: what came first is forgotten.
#[derive(Debug, Default)]
pub struct LastWords {
    bytes: VecDeque<u8>,
    forgotten: bool,
}

impl LastWords {
    /// Adds what was written.
    pub fn push(&mut self, written: &[u8]) {
        let keep = &written[written.len().saturating_sub(LAST_WORDS_BYTES)..];
        let excess = (self.bytes.len() + keep.len()).saturating_sub(LAST_WORDS_BYTES);
        self.forgotten |= excess > 0 || keep.len() < written.len();
        self.bytes.drain(..excess);
        self.bytes.extend(keep);
    }

    /// What is kept, as text. A line whose start was forgotten is left out, unless it is all
    /// there is; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        let whole_lines = match bytes.iter().position(|&byte| byte == b'\n') {
            Some(end) if self.forgotten && end + 1 < bytes.len() => &bytes[end + 1..],
            _ => &bytes[..],
        };
        String::from_utf8_lossy(whole_lines).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_output_is_kept_whole() {
        let mut words = LastWords::default();
        words.push(b"one\n");
        words.push(b"two\xff\n");
        assert_eq!(words.text(), "one\ntwo\u{fffd}\n");
    }

    #[test]
    fn long_output_keeps_its_end_in_whole_lines() {
        let mut words = LastWords::default();
        for line in 0..10_000 {
            words.push(format!("line {line}\n").as_bytes());
        }
        let text = words.text();
        assert!(text.len() <= LAST_WORDS_BYTES);
        assert!(text.starts_with("line "), "{:?}", &text[..20]);
        assert!(text.ends_with("line 9999\n"));
    }

    #[test]
    fn one_write_beyond_the_limit_keeps_its_end() {
        let mut words = LastWords::default();
        words.push(&[b'a'; LAST_WORDS_BYTES]);
        words.push(&[b'b'; LAST_WORDS_BYTES + 1]);
        assert_eq!(words.text(), "b".repeat(LAST_WORDS_BYTES));
    }
}
