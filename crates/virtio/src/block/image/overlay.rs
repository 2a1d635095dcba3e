//! The layer that takes the writes of an overlay.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder};

use super::open::{inspect, io_error, open_layer, resolve};
use super::stack::Layer;
use super::{ImageError, ImageFormat, Overlay};

/// Where nameless layers go: on a disk, unlike `/tmp` on many hosts.
const TEMPORARY: &str = "/var/tmp";

pub(super) fn open(place: &Overlay, below: &[Layer]) -> Result<Layer, ImageError> {
    let Some(base) = below.first() else {
        return Err(ImageError::Descriptors {
            expected: 1,
            found: 0,
        });
    };
    match place {
        Overlay::Temporary(directory) => temporary(directory.as_deref(), base),
        Overlay::Kept(path) => kept(path, base),
    }
}

fn temporary(directory: Option<&Path>, base: &Layer) -> Result<Layer, ImageError> {
    let directory = directory.unwrap_or(Path::new(TEMPORARY));
    let failed = io_error("making a temporary overlay in", directory);
    let file = tempfile::tempfile_in(directory).map_err(failed)?;
    let path = directory.join("temporary overlay");
    format(&path, &file, base, None)?;
    inspect(&path, file, Some(ImageFormat::Qcow2), true)
}

fn kept(path: &Path, base: &Layer) -> Result<Layer, ImageError> {
    match open_layer(path, Some(ImageFormat::Qcow2), true) {
        Err(ImageError::Missing(_)) => {}
        result => return result.and_then(|layer| belongs_to(layer, base)),
    }
    // Made under another name, so that a crash leaves no half of one under its own.
    let file = tempfile::NamedTempFile::new_in(parent(path))
        .map_err(io_error("making the overlay", path))?;
    let name = std::fs::canonicalize(&base.path).map_err(io_error("looking at", &base.path))?;
    format(path, file.as_file(), base, Some(name))?;
    file.as_file()
        .sync_all()
        .map_err(io_error("writing the overlay", path))?;
    let file = file.persist_noclobber(path).map_err(|error| error.error);
    let file = file.map_err(io_error("naming the overlay", path))?;
    inspect(path, file, Some(ImageFormat::Qcow2), true)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Checks that a kept overlay was made over this very file.
fn belongs_to(layer: Layer, base: &Layer) -> Result<Layer, ImageError> {
    let found = layer
        .header
        .as_ref()
        .and_then(|header| header.backing.clone())
        .unwrap_or_default();
    let same = std::fs::metadata(resolve(&layer.path, &found)).is_ok_and(|named| {
        base.file
            .metadata()
            .is_ok_and(|opened| (named.dev(), named.ino()) == (opened.dev(), opened.ino()))
    });
    if same {
        return Ok(layer);
    }
    Err(ImageError::OtherBase {
        path: layer.path,
        found,
        base: base.path.clone(),
    })
}

/// Writes an empty qcow2 image as large as its base.
fn format(path: &Path, file: &File, base: &Layer, name: Option<PathBuf>) -> Result<(), ImageError> {
    let making = |source| ImageError::Io {
        doing: "making the overlay",
        path: path.to_path_buf(),
        source,
    };
    let size = base.size().map_err(io_error("looking at", &base.path))?;
    let storage = file
        .try_clone()
        .and_then(imago::file::File::try_from)
        .map_err(making)?;
    let mut builder =
        Qcow2::<_, FormatAccess<imago::file::File>>::create_builder(storage).size(size);
    if let Some(name) = name {
        let name = name.into_os_string().into_string();
        let name = name.map_err(|_| making(io::Error::other("the base's path is not UTF-8")))?;
        builder = builder.backing(name, base.format.to_string());
    }
    builder.create().map_err(making)
}
