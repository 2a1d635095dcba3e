//! What a kernel file is, from its content.
//!
//! Every backend and the command line ask this before anything starts, so that a wrong file is
//! refused with its name, what it really is, and what to do. The input may be anything at all:
//! reads are bounded, sizes in the file are checked against its length, nothing panics.

mod arm64;
mod bzimage;
mod elf;
mod error;
mod foreign;
mod input;
#[cfg(test)]
mod tests;
mod version;

use std::fmt;
use std::io::{Read, Seek};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use bzimage::{Compression, SetupHeader};
pub use elf::ElfKernel;
pub use error::{InspectError, InspectErrorKind};

use crate::Arch;
use input::Input;

/// The container that a kernel comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum KernelFormat {
    /// An uncompressed ELF executable (`vmlinux`).
    #[serde(rename = "elf")]
    Elf,
    /// The x86 boot format (`vmlinuz`, `bzImage`).
    #[serde(rename = "bzImage")]
    BzImage,
    /// The arm64 boot format (`Image`).
    #[serde(rename = "Image")]
    Arm64Image,
}

impl fmt::Display for KernelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Elf => "ELF vmlinux",
            Self::BzImage => "bzImage",
            Self::Arm64Image => "arm64 Image",
        })
    }
}

/// What was found in a kernel file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelImage {
    /// The container.
    pub format: KernelFormat,
    /// The architecture that it runs on.
    pub arch: Arch,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// The release, as `uname -r` gives it: of a bzImage always where its header has one, of an
    /// ELF file only under [`Detail::Version`].
    pub version: Option<String>,
    /// How many bytes of guest memory the kernel needs for itself alone before it can run: the end
    /// of its highest segment, or of the place that it unpacks itself to. 0 where unknown.
    pub memory_end: u64,
    /// The details of an ELF file.
    pub elf: Option<ElfKernel>,
    /// The details of a bzImage.
    pub setup: Option<SetupHeader>,
}

impl KernelImage {
    /// The address of the PVH entry point, which QEMU needs of an ELF kernel.
    pub fn pvh_entry(&self) -> Option<u64> {
        self.elf.as_ref().and_then(|elf| elf.pvh_entry)
    }

    /// Checks that the kernel runs on `arch`.
    ///
    /// # Errors
    /// [`InspectErrorKind::WrongArch`] with `path` where it does not.
    pub fn require_arch(&self, path: &Path, arch: Arch) -> Result<(), InspectError> {
        if self.arch == arch {
            return Ok(());
        }
        Err(InspectErrorKind::WrongArch {
            found: self.arch.name().to_owned(),
            needed: arch,
        }
        .at(path))
    }
}

impl fmt::Display for KernelImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} for {}", self.format, self.arch)?;
        if let Some(setup) = &self.setup {
            write!(f, ", {} payload", setup.compression)?;
        }
        if self.pvh_entry().is_some() {
            f.write_str(", with PVH entry")?;
        }
        match &self.version {
            Some(version) => write!(f, ", Linux {version}"),
            None => Ok(()),
        }
    }
}

/// How far to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Headers only: a few kilobytes are read, whatever the size of the file.
    #[default]
    Headers,
    /// Also the version of an ELF file, which stands somewhere in its data: reads up to 128 MiB.
    Version,
}

/// Inspects the kernel file at `path`, its headers only.
///
/// # Errors
/// Everything that keeps the file from being booted; see [`InspectErrorKind`].
pub fn inspect(path: &Path) -> Result<KernelImage, InspectError> {
    inspect_file(path, Detail::Headers)
}

/// Inspects the kernel file at `path` and checks that this host's guests can run it. This is what
/// a backend calls before anything starts.
///
/// # Errors
/// Those of [`inspect`], and [`InspectErrorKind::WrongArch`].
pub fn inspect_for_host(path: &Path) -> Result<KernelImage, InspectError> {
    let image = inspect(path)?;
    if let Some(host) = Arch::host() {
        image.require_arch(path, host)?;
    }
    Ok(image)
}

/// Inspects the kernel file at `path`.
///
/// # Errors
/// Everything that keeps the file from being booted; see [`InspectErrorKind`].
pub fn inspect_file(path: &Path, detail: Detail) -> Result<KernelImage, InspectError> {
    let mut file = input::open_regular(path).map_err(|kind| kind.at(path))?;
    inspect_reader(&mut file, path, detail)
}

/// Inspects what `reader` holds; `path` is what messages call it.
///
/// # Errors
/// Everything that keeps the content from being booted; see [`InspectErrorKind`].
pub fn inspect_reader<R: Read + Seek>(
    reader: &mut R,
    path: &Path,
    detail: Detail,
) -> Result<KernelImage, InspectError> {
    recognise(reader, detail).map_err(|kind| kind.at(path))
}

fn recognise<R: Read + Seek>(
    reader: &mut R,
    detail: Detail,
) -> Result<KernelImage, InspectErrorKind> {
    let mut input = Input::new(reader)?;
    if input.length() == 0 {
        return Err(InspectErrorKind::Empty);
    }
    let head = input.head()?;
    // The order matters: a bzImage and an arm64 Image with an EFI stub are PE files, too.
    if elf::is_elf(&head) {
        elf::inspect(&mut input, &head, detail)
    } else if bzimage::has_setup_header(&head) {
        bzimage::inspect(&mut input, &head)
    } else if arm64::has_image_header(&head) {
        arm64::inspect(&mut input, &head, detail)
    } else {
        Err(foreign::recognise(&head))
    }
}
