//! Contents of files and trees, in both directions.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use capsa_agent_protocol::files::{ExtractOptions, WriteRequest};
use capsa_agent_protocol::frame::{HEAD_BYTES, Head, Kind, MAX_DATA_BYTES, frame};
use capsa_agent_protocol::tree::{Extractor, pack};
use capsa_agent_protocol::{ByteString, Failure, FailureKind, Reply, TreeSummary};

use super::absolute;
use crate::serve::Connection;

pub(super) fn read(
    mut connection: Connection,
    path: &ByteString,
    offset: u64,
    length: Option<u64>,
) -> io::Result<()> {
    let failed =
        |error: &io::Error| Reply::Failed(Failure::system(error, path.display().to_string()));
    let opened = File::open(absolute(path)).and_then(|mut file| {
        if file.metadata()?.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        // Pipes and devices have no places in them.
        if offset > 0 {
            file.seek(SeekFrom::Start(offset))?;
        }
        Ok(file.take(length.unwrap_or(u64::MAX)))
    });
    let mut file = match opened {
        Ok(file) => file,
        Err(error) => return connection.reply(&failed(&error)),
    };
    connection.reply(&Reply::Done)?;
    let mut buffer = vec![0; HEAD_BYTES + MAX_DATA_BYTES];
    loop {
        let content = buffer.get_mut(HEAD_BYTES..).unwrap_or_default();
        let length = match file.read(content) {
            Ok(0) => return connection.write(&frame(Kind::End, &[])),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return connection.reply(&failed(&error)),
        };
        if let Some(head) = buffer.first_chunk_mut() {
            let kind = Kind::Data;
            *head = Head { kind, length }.encode();
        }
        connection.write(buffer.get(..HEAD_BYTES + length).unwrap_or_default())?;
    }
}

pub(super) fn write(mut connection: Connection, request: &WriteRequest) -> io::Result<()> {
    let path = &request.path;
    let failed =
        |error: &io::Error| Reply::Failed(Failure::system(error, path.display().to_string()));
    let mut file = match open_for_writing(request) {
        Ok(file) => file,
        Err(error) => return connection.reply(&failed(&error)),
    };
    connection.reply(&Reply::Done)?;
    loop {
        let written = match connection.next_frame()? {
            Some((Kind::Data, content)) => file.write_all(content),
            Some((Kind::End, _)) => break,
            // The host has changed its mind.
            None => return Ok(()),
            Some(_) => return refuse_frame(connection),
        };
        if let Err(error) = written {
            connection.reply(&failed(&error))?;
            return connection.finish();
        }
    }
    let synced = if request.sync {
        file.sync_all()
    } else {
        Ok(())
    };
    connection.reply(&match synced {
        Ok(()) => Reply::Done,
        Err(error) => failed(&error),
    })
}

fn open_for_writing(request: &WriteRequest) -> io::Result<File> {
    let path = absolute(&request.path);
    let mode = request.mode & 0o7777;
    let mut options = OpenOptions::new();
    options.mode(mode).append(request.append).write(true);
    options.truncate(request.truncate && !request.append);
    let mut made = false;
    let mut file = if request.create || request.exclusive {
        // A file that this makes gets its mode whatever the umask, and another keeps its own.
        match options.clone().create_new(true).open(&path) {
            Ok(file) => {
                made = true;
                file
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !request.exclusive => {
                options.create(true).open(&path)?
            }
            Err(error) => return Err(error),
        }
    } else {
        options.open(&path)?
    };
    if made {
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    } else if request.truncate && request.append {
        file.set_len(0)?;
    }
    if request.offset > 0 && !request.append {
        file.seek(SeekFrom::Start(request.offset))?;
    }
    Ok(file)
}

pub(super) fn copy_out(mut connection: Connection, path: &Path, follow: bool) -> io::Result<()> {
    // What is missing is told as any other failure, before the tree begins.
    let there = if follow {
        path.metadata()
    } else {
        path.symlink_metadata()
    };
    if let Err(error) = there {
        let failure = Failure::system(&error, path.display().to_string());
        return connection.reply(&Reply::Failed(failure));
    }
    connection.reply(&Reply::Done)?;
    let mut collected = Collected {
        connection,
        frames: Vec::new(),
    };
    pack(path, follow, &mut |frame: &[u8]| collected.add(frame))?;
    collected.send()
}

/// Small frames go out together.
struct Collected {
    connection: Connection,
    frames: Vec<u8>,
}

impl Collected {
    fn add(&mut self, frame: &[u8]) -> io::Result<()> {
        if self.frames.len() + frame.len() > MAX_DATA_BYTES {
            self.send()?;
        }
        if frame.len() > MAX_DATA_BYTES / 2 {
            self.send()?;
            return self.connection.write(frame);
        }
        self.frames.extend_from_slice(frame);
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        let sent = self.connection.write(&self.frames);
        self.frames.clear();
        sent
    }
}

pub(super) fn copy_in(
    mut connection: Connection,
    path: &Path,
    options: ExtractOptions,
) -> io::Result<()> {
    let failed = |error: &io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::InvalidData => FailureKind::Protocol,
            _ => FailureKind::System,
        };
        Reply::Failed(Failure::of(kind, error, path.display().to_string()))
    };
    let mut extractor = match Extractor::new(path, options) {
        Ok(extractor) => extractor,
        Err(error) => return connection.reply(&failed(&error)),
    };
    connection.reply(&Reply::Done)?;
    loop {
        let Some((kind, content)) = connection.next_frame()? else {
            // The host has changed its mind.
            return Ok(());
        };
        match extractor.take(kind, content) {
            Ok(None) => {}
            Ok(Some(summary)) => return copied(connection, summary),
            Err(error) => {
                connection.reply(&failed(&error))?;
                return connection.finish();
            }
        }
    }
}

fn copied(mut connection: Connection, summary: TreeSummary) -> io::Result<()> {
    connection.reply(&Reply::Copied(summary))
}

fn refuse_frame(mut connection: Connection) -> io::Result<()> {
    let text = "this frame has no place in a file";
    connection.reply(&Reply::Failed(Failure::new(FailureKind::Protocol, text)))?;
    connection.finish()
}
