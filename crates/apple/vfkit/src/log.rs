//! vfkit's log: its end is kept for errors, and each line is a sign that the start goes on.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use capsa_process::LastWords;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

/// The longest line that is looked at, in bytes.
const MAX_LINE_BYTES: usize = 4 << 10;
/// What stands before the name of the console's pseudo-terminal.
const PTY_MARK: &str = "pty path: ";

/// What the log has told so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// How many lines there were.
    pub(crate) lines: u64,
    /// The console's pseudo-terminal.
    pub(crate) pty: Option<PathBuf>,
}

/// Follows the log to its end.
#[derive(Clone, Debug)]
pub(crate) struct VfkitLog {
    words: Arc<Mutex<LastWords>>,
    progress: watch::Receiver<Progress>,
}

impl VfkitLog {
    /// Starts to read from the pipe that vfkit has as error output.
    pub(crate) fn follow(pipe: OwnedFd) -> io::Result<Self> {
        let reader = pipe::Receiver::from_owned_fd(pipe)?;
        let words = Arc::new(Mutex::new(LastWords::default()));
        let (sender, progress) = watch::channel(Progress::default());
        tokio::spawn(read(reader, words.clone(), sender));
        Ok(Self { words, progress })
    }

    /// Follows the lines; closed at the end of the log.
    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// The end of the log.
    pub(crate) fn text(&self) -> String {
        let words = self.words.lock().unwrap_or_else(PoisonError::into_inner);
        words.text()
    }

    /// `what`, with the end of the log behind it.
    pub(crate) fn with_end(&self, what: impl std::fmt::Display) -> String {
        let log = self.text();
        match log.trim_end() {
            "" => format!("{what} (its log is empty)"),
            log => format!("{what}; the end of its log:\n{log}\n"),
        }
    }

    /// Waits until everything that vfkit wrote was read. To be called when it has ended.
    pub(crate) async fn finished(&self) {
        let mut progress = self.progress.clone();
        while progress.changed().await.is_ok() {}
    }
}

async fn read(
    mut reader: pipe::Receiver,
    words: Arc<Mutex<LastWords>>,
    progress: watch::Sender<Progress>,
) {
    let mut buffer = vec![0; 1024];
    let mut line = Vec::new();
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        let bytes = &buffer[..count];
        words
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes);
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = MAX_LINE_BYTES.saturating_sub(line.len());
            line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                let text = String::from_utf8_lossy(&line);
                let pty = pty_path(&text);
                progress.send_modify(|progress| {
                    progress.lines += 1;
                    progress.pty = pty.or(progress.pty.take());
                });
                line.clear();
            }
        }
    }
}

/// The terminal's path in a line such as `msg="Using PTY (pty path: /dev/ttys003)"`.
fn pty_path(line: &str) -> Option<PathBuf> {
    let (_, rest) = line.split_once(PTY_MARK)?;
    let (path, _) = rest.split_once(')')?;
    path.starts_with("/dev/").then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_is_found_in_its_line_and_nowhere_else() {
        assert_eq!(
            pty_path(r#"time="x" level=info msg="Using PTY (pty path: /dev/ttys003)""#),
            Some(PathBuf::from("/dev/ttys003"))
        );
        assert_eq!(pty_path("Using PTY (pty path: /etc/passwd)"), None);
        assert_eq!(pty_path("virtual machine is running"), None);
        assert_eq!(pty_path("pty path: /dev/ttys003 without an end"), None);
    }
}
