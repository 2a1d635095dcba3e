//! From a path to a stack of open files.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::lock::try_lock;
use super::overlay;
use super::probe::{probe, read_start};
use super::qcow2_header::{HEADER_BYTES, Qcow2Header};
use super::stack::{Layer, OpenDisk};
use super::{DiskAccess, DiskSource, ImageError, ImageFormat};

/// Most images under one.
const MAX_BACKING: usize = 16;

impl DiskSource {
    /// Opens and locks everything that the disk consists of.
    ///
    /// # Errors
    /// What is wrong with the image, or with the images that it is based on. Nothing was changed then, except that a
    /// kept overlay may have been made.
    pub fn open(&self) -> Result<OpenDisk, ImageError> {
        let write = self.access == DiskAccess::ReadWrite;
        let mut layers = vec![open_layer(&self.path, self.format, write)?];
        add_backing(&mut layers, self.allow_backing)?;
        if let DiskAccess::Overlay(place) = &self.access {
            let layer = overlay::open(place, &layers)?;
            layers.insert(0, layer);
        }
        Ok(OpenDisk {
            layers,
            probed: self.format.is_none(),
        })
    }
}

/// Opens the images under the lowest one so far.
fn add_backing(layers: &mut Vec<Layer>, allowed: bool) -> Result<(), ImageError> {
    let mut seen = HashSet::new();
    loop {
        let Some(lowest) = layers.last() else {
            return Ok(());
        };
        let Some(backing) = lowest
            .header
            .as_ref()
            .and_then(|header| header.backing.clone())
        else {
            return Ok(());
        };
        let path = lowest.path.clone();
        if !allowed {
            return Err(ImageError::Backing { path, backing });
        }
        let metadata = lowest
            .file
            .metadata()
            .map_err(io_error("looking at", &path))?;
        let again = !seen.insert((metadata.dev(), metadata.ino()));
        if again || layers.len() > MAX_BACKING {
            return Err(ImageError::TooDeep {
                path,
                limit: MAX_BACKING,
            });
        }
        let format = lowest
            .header
            .as_ref()
            .and_then(|header| header.backing_format.as_deref());
        let format = match format {
            Some("raw") => Some(ImageFormat::Raw),
            Some("qcow2") => Some(ImageFormat::Qcow2),
            // Not said, or a name of no format: the content tells.
            _ => None,
        };
        layers.push(open_layer(&resolve(&path, &backing), format, false)?);
    }
}

/// A backing file's name is relative to the image that names it.
pub(super) fn resolve(image: &Path, backing: &str) -> PathBuf {
    let backing = backing.strip_prefix("file:").unwrap_or(backing);
    image.parent().unwrap_or(Path::new(".")).join(backing)
}

/// Opens, locks and looks at one image.
pub(super) fn open_layer(
    path: &Path,
    format: Option<ImageFormat>,
    write: bool,
) -> Result<Layer, ImageError> {
    let file = open_file(path, write)?;
    inspect(path, file, format, write)
}

pub(super) fn inspect(
    path: &Path,
    file: File,
    format: Option<ImageFormat>,
    write: bool,
) -> Result<Layer, ImageError> {
    let path = path.to_path_buf();
    let free = try_lock(&file, write).map_err(io_error("locking", &path))?;
    if !free {
        return Err(ImageError::Busy { path, write });
    }
    let mut start = vec![0; HEADER_BYTES];
    let count = read_start(&file, &mut start).map_err(io_error("reading", &path))?;
    start.truncate(count);
    if start.is_empty() {
        return Err(ImageError::Empty(path));
    }
    let format = match format {
        Some(format) => format,
        None => {
            let found = probe(&start);
            found.map_err(|format| ImageError::Unsupported {
                path: path.clone(),
                format,
            })?
        }
    };
    let header = match format {
        ImageFormat::Raw => None,
        ImageFormat::Qcow2 => {
            if probe(&start) != Ok(ImageFormat::Qcow2) {
                return Err(ImageError::Format {
                    path,
                    expected: format,
                });
            }
            Some(check_header(&path, &start)?)
        }
    };
    Ok(Layer {
        path,
        file,
        format,
        header,
        writable: write,
    })
}

fn check_header(path: &Path, start: &[u8]) -> Result<Qcow2Header, ImageError> {
    let path = path.to_path_buf();
    let header = match Qcow2Header::parse(start) {
        Ok(header) => header,
        Err(reason) => {
            return Err(ImageError::Corrupt {
                path,
                reason: reason.to_owned(),
            });
        }
    };
    if header.encrypted {
        return Err(ImageError::Encrypted(path));
    }
    if header.external_data {
        return Err(ImageError::ExternalData(path));
    }
    if header.size == 0 {
        return Err(ImageError::Empty(path));
    }
    Ok(header)
}

fn open_file(path: &Path, write: bool) -> Result<File, ImageError> {
    // Not blocking: a pipe without a writer must not hang the caller. It means nothing for files and block devices.
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|source| open_error(path, write, source))?;
    let kind = file
        .metadata()
        .map_err(io_error("looking at", path))?
        .file_type();
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else {
        "neither a file nor a device"
    };
    Err(ImageError::NotADisk {
        path: path.to_path_buf(),
        what,
    })
}

fn open_error(path: &Path, write: bool, source: io::Error) -> ImageError {
    let at = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound => ImageError::Missing(at),
        io::ErrorKind::IsADirectory => ImageError::NotADisk {
            path: at,
            what: "a directory",
        },
        io::ErrorKind::ReadOnlyFilesystem => ImageError::ReadOnly(at),
        io::ErrorKind::PermissionDenied if source.raw_os_error() == Some(libc::EPERM) => {
            ImageError::ReadOnly(at)
        }
        io::ErrorKind::PermissionDenied => ImageError::Permission { path: at, write },
        _ if source.raw_os_error() == Some(libc::ENXIO) => ImageError::NotADisk {
            path: at,
            what: "a pipe or a socket",
        },
        _ => ImageError::Io {
            doing: "opening the disk image",
            path: at,
            source,
        },
    }
}

pub(super) fn io_error(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_path_buf();
    move |source| ImageError::Io {
        doing,
        path,
        source,
    }
}
