//! Linux sources: Debian's package or a tree of the user's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::{BuildError, Progress, SourceChoice};
use crate::fingerprint::hex;

/// The oldest Linux that has every option of `kernel/*.config`.
pub(super) const OLDEST: (u32, u32) = (6, 12);
/// Where Debian's packages put the sources.
const PACKAGED: &str = "/usr/src";

/// Sources that are there.
pub(super) enum Source {
    Archive { package: String, path: PathBuf },
    Directory(PathBuf),
}

impl Source {
    pub(super) fn find(choice: &SourceChoice) -> Result<Self, BuildError> {
        match choice {
            SourceChoice::Package => {
                let (package, path) = packaged().ok_or(BuildError::NoSourcePackage)?;
                Ok(Self::Archive { package, path })
            }
            SourceChoice::Directory(directory) => {
                let directory = fs::canonicalize(directory)
                    .map_err(|_| BuildError::NotASourceTree(directory.clone()))?;
                let is_linux = ["Makefile", "Kconfig", "scripts/kconfig/merge_config.sh"]
                    .iter()
                    .all(|name| directory.join(name).is_file());
                if !is_linux {
                    return Err(BuildError::NotASourceTree(directory));
                }
                // The kernel's own rule for a build outside of the sources.
                if directory.join(".config").exists() || directory.join("include/config").exists() {
                    return Err(BuildError::UncleanSourceTree(directory));
                }
                Ok(Self::Directory(directory))
            }
        }
    }

    /// For the kernel's record.
    pub(super) fn description(&self) -> String {
        match self {
            Self::Archive { package, .. } => match package_version(package) {
                Some(version) => format!("{package} {version}"),
                None => package.clone(),
            },
            Self::Directory(directory) => directory.display().to_string(),
        }
    }

    /// Changes whenever the sources do.
    pub(super) fn fingerprint(&self) -> Result<String, BuildError> {
        match self {
            Self::Archive { package, path } => {
                let metadata = fs::metadata(path).map_err(BuildError::io("reading", path))?;
                Ok(format!(
                    "{} {} {}",
                    self.description(),
                    package,
                    metadata.len()
                ))
            }
            Self::Directory(directory) => {
                let mut hash = Sha256::new();
                fingerprint_tree(directory, &mut hash)
                    .map_err(BuildError::io("reading", directory))?;
                Ok(hex(&hash.finalize()))
            }
        }
    }

    /// The date that the kernel names: that of the sources, so that building again gives the same.
    pub(super) fn date(&self) -> String {
        let path = match self {
            Self::Archive { path, .. } => path.clone(),
            Self::Directory(directory) => directory.join("Makefile"),
        };
        let seconds = fs::metadata(&path).map_or(0, |metadata| metadata.mtime());
        let formatted = Command::new("date")
            .args(["--utc", &format!("--date=@{seconds}"), "+%Y-%m-%d"])
            .output();
        match formatted {
            Ok(output) if output.status.success() => {
                String::from_utf8_lossy(&output.stdout).trim().to_owned()
            }
            _ => format!("@{seconds}"),
        }
    }

    /// Makes the sources available; gives their directory.
    pub(super) fn unpack(
        &self,
        tree: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PathBuf, BuildError> {
        let path = match self {
            Self::Directory(directory) => return Ok(directory.clone()),
            Self::Archive { path, .. } => path,
        };
        progress(Progress::Step("unpacking the sources"));
        let target = tree.join("source");
        fs::create_dir_all(&target).map_err(BuildError::io("creating", &target))?;
        let output = Command::new("tar")
            .args([
                "--extract",
                "--strip-components=1",
                "--no-same-owner",
                "--file",
            ])
            .arg(path)
            .arg("--directory")
            .arg(&target)
            // The largest parts that no build reads.
            .args(["--exclude=*/Documentation/*/*", "--exclude=*/tools/testing"])
            .output()
            .map_err(BuildError::io("unpacking", path))?;
        if !output.status.success() {
            return Err(BuildError::Program {
                program: "tar".to_owned(),
                reason: output.status.to_string(),
                output: String::from_utf8_lossy(&output.stderr).into_owned(),
                tree: target,
            });
        }
        Ok(target)
    }
}

/// The newest packaged sources of those that are new enough: the package's name and the archive.
pub(super) fn packaged() -> Option<(String, PathBuf)> {
    fs::read_dir(PACKAGED)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let package = name.strip_suffix(".tar.xz")?.to_owned();
            let version = usable_version(&package)?;
            Some((version, package, entry.path()))
        })
        .max()
        .map(|(_, package, path)| (package, path))
}

/// The version in a package's name, `linux-source-6.12`.
fn version(package: &str) -> Option<(u32, u32)> {
    let (major, minor) = package.strip_prefix("linux-source-")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The same, of a package whose Linux is new enough for our configuration.
pub(super) fn usable_version(package: &str) -> Option<(u32, u32)> {
    version(package).filter(|version| *version >= OLDEST)
}

/// The package to ask for where none that is known will do.
pub(super) fn oldest_package() -> String {
    let (major, minor) = OLDEST;
    format!("linux-source-{major}.{minor}")
}

fn package_version(package: &str) -> Option<String> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Version}", package])
        .output()
        .ok()?;
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success() && !version.is_empty()).then_some(version)
}

/// Name, length and time of every file, in order of their names; `.git` is no part of the sources.
fn fingerprint_tree(directory: &Path, hash: &mut Sha256) -> io::Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name() == ".git" {
            continue;
        }
        let metadata = entry.metadata()?;
        hash.update(entry.file_name().as_encoded_bytes());
        hash.update([0, u8::from(metadata.is_dir())]);
        if metadata.is_dir() {
            fingerprint_tree(&entry.path(), hash)?;
        } else {
            hash.update(metadata.len().to_le_bytes());
            hash.update(metadata.mtime().to_le_bytes());
            hash.update(metadata.mtime_nsec().to_le_bytes());
        }
        hash.update([1]);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_the_name_of_the_package() {
        assert_eq!(version("linux-source-6.12"), Some((6, 12)));
        assert!(version("linux-source-6.12") > version("linux-source-6.1"));
        assert_eq!(version("linux-source-6"), None);
        assert_eq!(version("linux-image-6.12"), None);
    }

    #[test]
    fn linux_that_is_older_than_our_configuration_will_not_do() {
        assert_eq!(usable_version("linux-source-6.1"), None);
        assert_eq!(usable_version("linux-source-6.12"), Some((6, 12)));
        assert_eq!(usable_version("linux-source-7.0"), Some((7, 0)));
        assert_eq!(usable_version(&oldest_package()), Some(OLDEST));
    }

    #[test]
    fn directory_without_linux_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let choice = SourceChoice::Directory(directory.path().to_owned());

        let error = Source::find(&choice).err().unwrap();

        assert!(matches!(error, BuildError::NotASourceTree(_)), "{error}");
    }

    #[test]
    fn source_tree_that_was_built_in_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("scripts/kconfig")).unwrap();
        for name in [
            "Makefile",
            "Kconfig",
            "scripts/kconfig/merge_config.sh",
            ".config",
        ] {
            fs::write(directory.path().join(name), "").unwrap();
        }
        let choice = SourceChoice::Directory(directory.path().to_owned());

        let error = Source::find(&choice).err().unwrap();

        assert!(error.to_string().contains("make mrproper"), "{error}");
    }

    #[test]
    fn fingerprint_of_a_tree_changes_with_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let source = Source::Directory(directory.path().to_owned());
        fs::create_dir(directory.path().join("a")).unwrap();
        fs::write(directory.path().join("a/file"), "one").unwrap();
        let before = source.fingerprint().unwrap();

        fs::write(directory.path().join("a/file"), "three").unwrap();

        assert_ne!(source.fingerprint().unwrap(), before);
    }
}
