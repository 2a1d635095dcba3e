//! Trees of files, in and out. A thread walks the host's tree: it does not hold up the runtime, and
//! ends when the future is dropped, because its channel closes.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use capsa_agent_protocol::files::{ExtractOptions, FileRequest};
use capsa_agent_protocol::frame::{self, Kind};
use capsa_agent_protocol::tree::{Extractor, TreeItem, pack};
use capsa_agent_protocol::{ByteString, Reply, TreeSummary};
use tokio::sync::mpsc;

use crate::client::unexpected;
use crate::{AgentError, Files, Result};

/// Frames between the thread and the connection.
const FRAMES: usize = 8;

impl Files {
    /// Copies a file or directory of the host, with all it holds, into the guest: it becomes `to`.
    /// Directories that are there are added to. Modes, times, symbolic and hard links are kept;
    /// sockets and devices are left out.
    ///
    /// # Errors
    /// [`AgentError::Local`] for a file of the host that cannot be read.
    pub async fn copy_in(
        &self,
        from: impl AsRef<Path>,
        to: impl Into<OsString>,
        options: ExtractOptions,
    ) -> Result<TreeSummary> {
        let from = from.as_ref().to_owned();
        let path = ByteString::from(to.into());
        let operation = format!("copying {} to {}", from.display(), path.display());
        // What cannot be read at all is told before the guest has anything.
        let there = from.clone();
        local(&from, move || there.symlink_metadata()).await?;
        let mut connection = self
            .begin(FileRequest::CopyIn { path, options }, &operation)
            .await?;
        let (sender, mut frames) = mpsc::channel::<Vec<u8>>(FRAMES);
        let tree = from.clone();
        let walk = tokio::task::spawn_blocking(move || {
            pack(&tree, false, &mut |frame: &[u8]| {
                sender
                    .blocking_send(frame.to_vec())
                    .map_err(|_| io::ErrorKind::BrokenPipe.into())
            })
        });
        let (mut from_agent, mut to_agent) = tokio::io::split(connection.stream);
        let mut failed = None;
        let send = async {
            while let Some(frame) = frames.recv().await {
                if let Some(failure) = failure_of(&frame) {
                    failed = Some(failure);
                    return io::Result::Ok(());
                }
                tokio::io::AsyncWriteExt::write_all(&mut to_agent, &frame).await?;
            }
            Ok(())
        };
        const DOING: &str = "copying into the guest";
        let answer = connection.reader.next(&mut from_agent, DOING);
        tokio::pin!(answer);
        let answer = tokio::select! {
            // The guest says why it takes no more, or that it has all.
            answer = &mut answer => answer,
            sent = send => match (sent, failed.take()) {
                (_, Some(failure)) => {
                    return Err(AgentError::Local {
                        path: from,
                        source: io::Error::other(failure),
                    });
                }
                (Ok(()) | Err(_), None) => answer.await,
            },
        };
        drop(frames);
        // It has nobody to send to, or has sent all.
        let _ = walk.await;
        match answer? {
            Some((Kind::Message, content)) => match frame::decode(&content)? {
                Reply::Copied(summary) => Ok(summary),
                Reply::Failed(failure) => Err(AgentError::refused(operation, failure)),
                _ => Err(unexpected()),
            },
            Some(_) => Err(unexpected()),
            None => Err(AgentError::Gone { doing: DOING }),
        }
    }

    /// Copies a file or directory of the guest, with all it holds, to the host: it becomes `to`.
    /// Nothing outside of `to` is touched, whatever the guest sends. As
    /// [`copy_in`](Self::copy_in) otherwise.
    ///
    /// # Errors
    /// [`AgentError::Local`] for a file of the host that cannot be written.
    pub async fn copy_out(
        &self,
        from: impl Into<OsString>,
        to: impl AsRef<Path>,
        options: ExtractOptions,
    ) -> Result<TreeSummary> {
        let to = to.as_ref().to_owned();
        let path = ByteString::from(from.into());
        let operation = format!("copying {} to {}", path.display(), to.display());
        let request = FileRequest::CopyOut {
            path,
            follow: false,
        };
        let mut connection = self.begin(request, &operation).await?;
        let (sender, mut frames) = mpsc::channel::<(Kind, Vec<u8>)>(FRAMES);
        let place = to.clone();
        let extract = local(&to, move || {
            let mut extractor = Extractor::new(&place, options)?;
            while let Some((kind, content)) = frames.blocking_recv() {
                if let Some(summary) = extractor.take(kind, &content)? {
                    return Ok(Some(summary));
                }
            }
            // The other end says why there is no more.
            Ok(None)
        });
        let receive = async move {
            loop {
                let (kind, content) = connection.next().await?;
                let last = kind == Kind::Message && is_last(&content)?;
                if let (Kind::Message, true) = (kind, last)
                    && let TreeItem::Failed(failure) = frame::decode(&content)?
                {
                    return Err(AgentError::refused(operation, failure));
                }
                // The thread ended: it says why.
                if sender.send((kind, content)).await.is_err() || last {
                    return Ok(());
                }
            }
        };
        let (received, extracted) = tokio::join!(receive, extract);
        match (extracted, received) {
            (Err(error), _) | (Ok(_), Err(error)) => Err(error),
            (Ok(Some(summary)), Ok(())) => Ok(summary),
            (Ok(None), Ok(())) => Err(unexpected()),
        }
    }
}

/// Whether nothing comes behind this item.
fn is_last(content: &[u8]) -> Result<bool> {
    let item = frame::decode(content)?;
    Ok(matches!(item, TreeItem::Finished(_) | TreeItem::Failed(_)))
}

/// Why the walk of the host's tree ended, if this frame says so.
fn failure_of(frame: &[u8]) -> Option<capsa_agent_protocol::Failure> {
    let content = frame
        .strip_prefix(&[Kind::Message as u8])?
        .get(frame::HEAD_BYTES - 1..)?;
    match frame::decode(content) {
        Ok(TreeItem::Failed(failure)) => Some(failure),
        _ => None,
    }
}

/// Works on the host's files beside the runtime.
async fn local<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let failed = |source| AgentError::Local {
        path: PathBuf::from(path),
        source,
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(failed),
        Err(error) => Err(failed(io::Error::other(error))),
    }
}
