use std::io;
use std::path::PathBuf;

use super::ImageFormat;

/// Why a disk image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such file.
    #[error("the disk image {} does not exist", .0.display())]
    Missing(PathBuf),
    /// A directory, pipe, socket or character device.
    #[error("{} is {what}; a disk is a file or a block device", path.display())]
    NotADisk {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// This user may not read, or not write, the file.
    #[error(
        "no permission to {} the disk image {}; change its mode, or use it {}",
        if *write { "write" } else { "read" },
        path.display(),
        if *write { "read-only or as an overlay" } else { "as another user" }
    )]
    Permission {
        /// The path.
        path: PathBuf,
        /// Whether writing was asked for.
        write: bool,
    },
    /// The file lies on a read-only file system, or is immutable.
    #[error("the disk image {} cannot be written here; use it read-only or as an overlay", .0.display())]
    ReadOnly(PathBuf),
    /// Somebody else uses the image.
    #[error(
        "the disk image {} is in use {}; stop the other VM, or use the image {}",
        path.display(),
        if *write { "by somebody" } else { "by somebody who writes it" },
        if *write { "read-only or as an overlay in all of them" } else { "as an overlay in both" }
    )]
    Busy {
        /// The path.
        path: PathBuf,
        /// Whether this VM wants to write it.
        write: bool,
    },
    /// The image has no bytes.
    #[error("the disk image {} is empty; give it a size, as with `truncate -s 1G`", .0.display())]
    Empty(PathBuf),
    /// The image has another format than stated.
    #[error("{} is no {expected} image", path.display())]
    Format {
        /// The path.
        path: PathBuf,
        /// What was stated.
        expected: ImageFormat,
    },
    /// A format that cannot be used.
    #[error("{} is a {format} image; convert it with `qemu-img convert -O qcow2`", path.display())]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// Its format.
        format: &'static str,
    },
    /// The image's structures are broken.
    #[error("the disk image {} is corrupt: {reason}", path.display())]
    Corrupt {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The image is encrypted.
    #[error("the disk image {} is encrypted; convert it with `qemu-img convert`", .0.display())]
    Encrypted(PathBuf),
    /// The image keeps its data in another file.
    #[error("the disk image {} has an external data file; convert it with `qemu-img convert`", .0.display())]
    ExternalData(PathBuf),
    /// The image has a backing file, which was not allowed.
    #[error(
        "the disk image {} is based on {backing:?}; allow backing files for it if you trust it",
        path.display()
    )]
    Backing {
        /// The path.
        path: PathBuf,
        /// The name of the backing file, as the image gives it.
        backing: String,
    },
    /// Too many images lie one upon the other, or in a circle.
    #[error("the disk image {} has more than {limit} backing files, or they form a circle", path.display())]
    TooDeep {
        /// The uppermost image.
        path: PathBuf,
        /// Most backing files.
        limit: usize,
    },
    /// A kept overlay that was made over another base.
    #[error("the overlay {} was made over {found:?}, not over {}", path.display(), base.display())]
    OtherBase {
        /// The overlay.
        path: PathBuf,
        /// What it says it lies over.
        found: String,
        /// What it should lie over now.
        base: PathBuf,
    },
    /// Descriptors and plan do not belong together.
    #[error("the disk's plan has {expected} layers, {found} descriptors came with it")]
    Descriptors {
        /// Layers of the plan.
        expected: usize,
        /// Descriptors.
        found: usize,
    },
    /// Another failure of the host.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}
