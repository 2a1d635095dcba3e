//! A stack of open images, on its way to becoming a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use imago::FormatAccess;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use serde::{Deserialize, Serialize};

use super::qcow2_header::Qcow2Header;
use super::{ImageError, ImageFormat};
use crate::block::SECTOR;
use crate::block::backend::{Backend, ImageDisk, RawDisk};

/// One open image.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) format: ImageFormat,
    pub(super) header: Option<Qcow2Header>,
    pub(super) writable: bool,
}

impl Layer {
    /// Bytes of the disk that the image describes.
    pub(super) fn size(&self) -> io::Result<u64> {
        match &self.header {
            Some(header) => Ok(header.size),
            None => Ok((&self.file)
                .seek(SeekFrom::End(0))?
                .next_multiple_of(SECTOR)),
        }
    }
}

/// An image as another process needs to know it, next to its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// For messages.
    pub path: PathBuf,
    /// The image's format.
    pub format: ImageFormat,
    /// Whether it may be written; only the uppermost may.
    pub writable: bool,
}

/// Everything that a disk consists of, opened and locked, the uppermost image first.
#[derive(Debug)]
pub struct OpenDisk {
    pub(super) layers: Vec<Layer>,
    pub(super) probed: bool,
}

impl OpenDisk {
    /// Bytes of the disk.
    ///
    /// # Errors
    /// The host cannot tell.
    pub fn size(&self) -> io::Result<u64> {
        self.layers.first().map_or(Ok(0), Layer::size)
    }

    /// Whether the format was found out from the content.
    pub fn was_probed(&self) -> bool {
        self.probed
    }

    /// Takes plan and descriptors apart, to hand them to another process. The locks go with the descriptors.
    pub fn into_parts(self) -> (Vec<LayerPlan>, Vec<OwnedFd>) {
        self.layers
            .into_iter()
            .map(|layer| {
                let Layer {
                    path,
                    file,
                    format,
                    writable,
                    ..
                } = layer;
                (
                    LayerPlan {
                        path,
                        format,
                        writable,
                    },
                    OwnedFd::from(file),
                )
            })
            .unzip()
    }

    /// Makes the disk from what [`into_parts`](Self::into_parts) gave.
    ///
    /// # Errors
    /// Plan and descriptors do not fit, or an image cannot be opened as what it is.
    pub fn backend_from_parts(
        plan: Vec<LayerPlan>,
        files: Vec<OwnedFd>,
    ) -> Result<Arc<dyn Backend>, ImageError> {
        let counts = ImageError::Descriptors {
            expected: plan.len(),
            found: files.len(),
        };
        if plan.len() != files.len() {
            return Err(counts);
        }
        let mut layers = plan.into_iter().zip(files.into_iter().map(File::from));
        let Some((top, file)) = layers.next() else {
            return Err(counts);
        };
        if layers.len() == 0 && top.format == ImageFormat::Raw {
            let disk = RawDisk::new(file, !top.writable);
            return Ok(Arc::new(disk.map_err(|source| failed(&top, source))?));
        }
        let mut below = None;
        for (plan, file) in layers.rev() {
            below = Some(open_image(&plan, file, below, false)?);
        }
        let image = open_image(&top, file, below, top.writable)?;
        Ok(Arc::new(ImageDisk::new(image, !top.writable)))
    }

    /// Makes the disk in this process.
    ///
    /// # Errors
    /// An image cannot be opened as what it is.
    pub fn into_backend(self) -> Result<Arc<dyn Backend>, ImageError> {
        let (plan, files) = self.into_parts();
        Self::backend_from_parts(plan, files)
    }
}

fn open_image(
    plan: &LayerPlan,
    file: File,
    below: Option<FormatAccess<imago::file::File>>,
    writable: bool,
) -> Result<FormatAccess<imago::file::File>, ImageError> {
    let open = || {
        let storage = imago::file::File::try_from(file)?;
        Ok(match plan.format {
            ImageFormat::Raw => FormatAccess::new(Raw::open_image(storage, writable)?),
            ImageFormat::Qcow2 => {
                let mut image = Qcow2::open_image(storage, writable)?;
                // Set even if there is none, so that no name in the image is ever followed.
                image.set_backing(below);
                image.set_data_file(None);
                FormatAccess::new(image)
            }
        })
    };
    open().map_err(|source| failed(plan, source))
}

fn failed(plan: &LayerPlan, source: io::Error) -> ImageError {
    let path = plan.path.clone();
    match plan.format {
        ImageFormat::Qcow2 => ImageError::Corrupt {
            path,
            reason: source.to_string(),
        },
        ImageFormat::Raw => ImageError::Io {
            doing: "opening the disk image",
            path,
            source,
        },
    }
}
