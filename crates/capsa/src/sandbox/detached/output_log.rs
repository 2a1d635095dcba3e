//! What a detached sandbox's command wrote: a file of bounded size, and those who follow it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::record::OUTPUT;

/// When a file is put aside and the next one begun. Two are kept, so that at least this much is
/// there of a command that writes more.
const FILE_BYTES: u64 = 8 << 20;
/// How much is read from a file at once.
const BUFFER: usize = 64 << 10;

/// Where the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// How many files were begun.
    file: u64,
    /// Length of the present one.
    bytes: u64,
    ended: bool,
}

/// The writer's end.
#[derive(Debug)]
pub(crate) struct OutputLog {
    folder: PathBuf,
    file: File,
    position: watch::Sender<Position>,
}

/// Follows the log, from its beginning.
#[derive(Clone, Debug)]
pub(crate) struct OutputReader {
    folder: PathBuf,
    position: watch::Receiver<Position>,
}

impl OutputLog {
    pub(crate) fn create(folder: &Path) -> io::Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            file: File::create(folder.join(OUTPUT))?,
            position: watch::Sender::new(Position::default()),
        })
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut position = *self.position.borrow();
        if position.bytes >= FILE_BYTES {
            fs::rename(self.folder.join(OUTPUT), older(&self.folder))?;
            self.file = File::create(self.folder.join(OUTPUT))?;
            position = Position {
                file: position.file + 1,
                ..Position::default()
            };
        }
        self.file.write_all(bytes)?;
        position.bytes = position.bytes.saturating_add(bytes.len() as u64);
        self.position.send_replace(position);
        Ok(())
    }

    pub(crate) fn reader(&self) -> OutputReader {
        OutputReader {
            folder: self.folder.clone(),
            position: self.position.subscribe(),
        }
    }
}

impl Drop for OutputLog {
    fn drop(&mut self) {
        self.position.send_modify(|position| position.ended = true);
    }
}

fn older(folder: &Path) -> PathBuf {
    folder.join(format!("{OUTPUT}.1"))
}

/// All that is kept of the output in `folder`.
pub(crate) fn read_all(folder: &Path) -> io::Result<Box<dyn Read + Send>> {
    let open = |path: PathBuf| match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let older = open(older(folder))?;
    let newer = open(folder.join(OUTPUT))?;
    let chain = |file: Option<File>| -> Box<dyn Read + Send> {
        match file {
            Some(file) => Box::new(file),
            None => Box::new(io::empty()),
        }
    };
    Ok(Box::new(chain(older).chain(chain(newer))))
}

impl OutputReader {
    /// Writes all that is kept, and goes on with what comes where `follow` says so.
    pub(crate) async fn copy(
        mut self,
        to: &mut (impl AsyncWrite + Unpin),
        follow: bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut current = self.position.borrow().file;
        let mut source = read_all(&self.folder)?;
        loop {
            let position = *self.position.borrow_and_update();
            loop {
                let count = source.read(&mut buffer)?;
                if count == 0 {
                    break;
                }
                to.write_all(buffer.get(..count).unwrap_or_default())
                    .await?;
            }
            to.flush().await?;
            if position.file != current {
                current = position.file;
                source = Box::new(File::open(self.folder.join(OUTPUT))?);
                continue;
            }
            if position.ended || !follow || self.position.changed().await.is_err() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn follower_gets_what_was_there_and_what_comes() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = OutputLog::create(folder.path()).unwrap();
        log.append(b"one ").unwrap();
        let reader = log.reader();
        let follower = tokio::spawn(async move {
            let mut all = Vec::new();
            reader.copy(&mut all, true).await.unwrap();
            all
        });
        tokio::task::yield_now().await;

        log.append(b"two").unwrap();
        drop(log);

        assert_eq!(follower.await.unwrap(), b"one two");
    }

    #[tokio::test]
    async fn reader_that_does_not_follow_ends_with_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = OutputLog::create(folder.path()).unwrap();
        log.append(b"one").unwrap();
        let mut all = Vec::new();

        log.reader().copy(&mut all, false).await.unwrap();

        assert_eq!(all, b"one");
    }

    #[tokio::test]
    async fn output_beyond_the_bound_drops_the_oldest() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = OutputLog::create(folder.path()).unwrap();
        let piece = vec![b'x'; usize::try_from(FILE_BYTES).unwrap()];
        for _ in 0..5 {
            log.append(&piece).unwrap();
        }
        log.append(b"end").unwrap();
        let mut all = Vec::new();

        log.reader().copy(&mut all, false).await.unwrap();

        assert!(all.ends_with(b"xend"));
        assert!(all.len() as u64 <= 2 * FILE_BYTES, "{}", all.len());
    }
}
