//! What a sandbox's commands see as `/`.

use std::fmt;
use std::path::{Path, PathBuf};

use capsa_core::{
    CachePolicy, DiskAccess, DiskSpec, Error, Result, ShareAccess, ShareFilter, ShareSpec,
};
use serde::{Deserialize, Serialize};

use super::host_rootfs;

/// The tag of the share that is the root.
pub(crate) const ROOT_TAG: &str = "capsa-root";
/// Where it would be mounted if it were not the root; no share of the user's is there.
const ROOT_PLACE: &str = "/capsa-root";

/// What a sandbox's commands see as `/`.
///
/// ```
/// use capsa::Rootfs;
/// let throw_away = Rootfs::directory("./rootfs");
/// let lasting = Rootfs::directory("./rootfs").writable();
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Rootfs {
    /// The file system that comes with Capsa: BusyBox, in the guest's memory.
    #[default]
    Minimal,
    /// A directory of the host. What commands change is gone with the sandbox, unless it is
    /// writable.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Whether changes are made in the directory itself.
        writable: bool,
    },
    /// A disk with a Linux file system on it (ext4, erofs, squashfs …).
    Disk {
        /// The disk; with [`DiskAccess::Overlay`] nothing is written to it.
        disk: DiskSpec,
    },
    /// The host's own `/`, to use its tools on other data: read-only beneath a layer that is thrown
    /// away, and without what is not for everybody. See [the list](crate::host_rootfs_hidden_paths).
    Host,
}

impl Rootfs {
    /// A directory of the host beneath a layer that is thrown away.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::Directory {
            path: path.into(),
            writable: false,
        }
    }

    /// A disk image beneath a layer that is thrown away, its format found by looking at its content.
    pub fn disk(path: impl Into<PathBuf>) -> Self {
        let mut disk = DiskSpec::new(path);
        disk.access = DiskAccess::Overlay { layer: None };
        Self::Disk { disk }
    }

    /// The same, but changes reach the directory or the disk. Of no effect on the others.
    pub fn writable(self) -> Self {
        match self {
            Self::Directory { path, .. } => Self::Directory {
                path,
                writable: true,
            },
            Self::Disk { mut disk } => {
                disk.access = DiskAccess::ReadWrite;
                Self::Disk { disk }
            }
            other => other,
        }
    }

    /// What the machine must be given for it.
    ///
    /// # Errors
    /// [`Error::File`] for a directory that is none.
    pub(crate) fn parts(&self) -> Result<RootParts> {
        let share = |path: &Path| {
            let mut share = ShareSpec::new(path, ROOT_PLACE);
            share.tag = Some(ROOT_TAG.to_owned());
            share
        };
        Ok(match self {
            Self::Minimal => RootParts::None,
            Self::Directory { path, writable } => {
                let path = existing_directory(path)?;
                let mut share = share(&path);
                if *writable {
                    share.access = ShareAccess::ReadWrite;
                }
                RootParts::Share(share)
            }
            Self::Disk { disk } => RootParts::Disk {
                file_system: file_system(&disk.path),
                disk: disk.clone(),
            },
            Self::Host => {
                let mut share = share(Path::new("/"));
                // The host's own programs change it meanwhile.
                share.cache = CachePolicy::Auto;
                share.filter = ShareFilter {
                    public_only: true,
                    hidden: host_rootfs::hidden_paths(),
                };
                RootParts::Share(share)
            }
        })
    }

    /// Whether commands write to a layer in the guest's memory instead of to the root itself.
    pub(crate) fn needs_layer(&self) -> bool {
        match self {
            Self::Minimal => false,
            Self::Directory { writable, .. } => !writable,
            // A disk has its layer on the host, but for file systems that cannot be written.
            Self::Disk { disk } => disk.access == DiskAccess::ReadOnly,
            Self::Host => true,
        }
    }
}

/// What the machine is given for a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RootParts {
    None,
    Share(ShareSpec),
    Disk {
        disk: DiskSpec,
        file_system: &'static str,
    },
}

/// The file system of a disk image, by its magic number; ext4, which is what most have, where it
/// cannot be told (in a qcow2 image, say).
fn file_system(image: &Path) -> &'static str {
    use std::io::Read;
    let mut start = Vec::new();
    let read = std::fs::File::open(image).and_then(|file| file.take(1082).read_to_end(&mut start));
    let at = |offset: usize, magic: &[u8]| start.get(offset..offset + magic.len()) == Some(magic);
    match read {
        Ok(_) if at(0, b"hsqs") => "squashfs",
        Ok(_) if at(1024, &0xE0F5_E1E2_u32.to_le_bytes()) => "erofs",
        _ => "ext4",
    }
}

fn existing_directory(path: &Path) -> Result<PathBuf> {
    let refused = |reason: String, fix: &str| Error::file("rootfs", path, reason, fix);
    let absolute = path.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            refused("there is no such directory".to_owned(), "check the path")
        }
        _ => refused(error.to_string(), "check the path and its modes"),
    })?;
    if !absolute.is_dir() {
        return Err(refused(
            "it is not a directory".to_owned(),
            "name a directory with a root file system in it; for a disk image use Rootfs::disk",
        ));
    }
    Ok(absolute)
}

impl From<&Path> for Rootfs {
    fn from(path: &Path) -> Self {
        Self::directory(path)
    }
}

impl From<PathBuf> for Rootfs {
    fn from(path: PathBuf) -> Self {
        Self::directory(path)
    }
}

impl From<&str> for Rootfs {
    fn from(path: &str) -> Self {
        Self::directory(path)
    }
}

impl fmt::Display for Rootfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Minimal => f.write_str("minimal"),
            Self::Host => f.write_str("host"),
            Self::Directory { path, .. } => path.display().fmt(f),
            Self::Disk { disk } => disk.path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_is_shared_read_only_beneath_a_layer() {
        let directory = tempfile::tempdir().unwrap();
        let root = Rootfs::directory(directory.path());

        let RootParts::Share(share) = root.parts().unwrap() else {
            panic!("{root} is a share");
        };

        assert_eq!(share.access, ShareAccess::ReadOnly);
        assert!(root.needs_layer());
        assert!(!root.writable().needs_layer());
    }

    #[test]
    fn directory_that_is_missing_or_a_file_names_the_fix() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (path, word) in [
            (Path::new("/no/such/rootfs"), "no such directory"),
            (file.path(), "not a directory"),
        ] {
            let error = Rootfs::directory(path).parts().unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn hosts_root_hides_what_is_not_for_everybody() {
        let RootParts::Share(share) = Rootfs::Host.parts().unwrap() else {
            panic!("the host's root is a share");
        };

        assert_eq!(share.access, ShareAccess::ReadOnly);
        assert!(share.filter.public_only);
        assert!(share.filter.hidden.contains(&PathBuf::from("/root")));
    }
}
