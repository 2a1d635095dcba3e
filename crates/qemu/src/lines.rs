use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Takes lines from a stream, without their ends. A line is at most `limit` bytes long; what is
/// beyond is thrown away. Nothing is lost when a call is cancelled.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    source: R,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are known to hold no line end.
    searched: usize,
    limit: usize,
    /// The end of the current line is still to come, its start was given out.
    skipping: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(source: R, limit: usize) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            searched: 0,
            limit,
            skipping: false,
        }
    }

    /// The next line; `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.take_line() {
                return Ok(Some(line));
            }
            self.buffer.reserve(1024);
            if self.source.read_buf(&mut self.buffer).await? == 0 {
                let rest = std::mem::take(&mut self.buffer);
                self.searched = 0;
                return Ok((!rest.is_empty() && !self.skipping).then_some(rest));
            }
        }
    }

    fn take_line(&mut self) -> Option<Vec<u8>> {
        while let Some(end) = self.find_end() {
            let line: Vec<u8> = self.buffer.drain(..=end).take(end).collect();
            self.searched = 0;
            if !std::mem::take(&mut self.skipping) {
                return Some(line);
            }
        }
        self.searched = self.buffer.len();
        if self.buffer.len() < self.limit {
            return None;
        }
        self.searched = 0;
        let line = std::mem::take(&mut self.buffer);
        (!std::mem::replace(&mut self.skipping, true)).then_some(line)
    }

    fn find_end(&self) -> Option<usize> {
        let found = self.buffer[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n')?;
        Some(self.searched + found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(text: &[u8], limit: usize) -> Vec<String> {
        let mut lines = Lines::new(text, limit);
        let mut all = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            all.push(String::from_utf8(line).unwrap());
        }
        all
    }

    #[tokio::test]
    async fn lines_come_one_by_one_and_the_last_without_its_end() {
        assert_eq!(lines(b"a\n\nbc\nd", 100).await, ["a", "", "bc", "d"]);
    }

    #[tokio::test]
    async fn a_line_beyond_the_limit_is_cut_once() {
        let mut text = vec![b'x'; 100_000];
        text.extend_from_slice(b"\nshort\n");

        let lines = lines(&text, 4096).await;

        assert_eq!(lines.len(), 2);
        assert!(lines[0].len() >= 4096 && lines[0].len() < 20_000);
        assert_eq!(lines[1], "short");
    }
}
