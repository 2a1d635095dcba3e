//! Shared directories.

use std::os::fd::OwnedFd;

use capsa_core::{CachePolicy, Error, OwnerMapping, Result, ShareAccess, ShareSpec};
use capsa_virtio::fs::{self, Filter, FsError, FsOptions, Owners};
use capsa_virtio::setup::DeviceSetup;
use rustix::process::geteuid;

const SETTING: &str = "share";

/// The device and its directory.
pub(super) fn open(index: usize, share: &ShareSpec) -> Result<(DeviceSetup, OwnedFd)> {
    if share.owners == OwnerMapping::Passthrough && !geteuid().is_root() {
        return Err(Error::invalid_setting(
            "share owners",
            "passthrough",
            "only root can give files to others on this host",
            "use OwnerMapping::Mapped or Squash, or run as root",
        ));
    }
    let directory =
        FsOptions::open_directory(&share.host_path).map_err(|error| refused(share, error))?;
    let options = FsOptions {
        read_only: share.access == ShareAccess::ReadOnly,
        owners: match share.owners {
            OwnerMapping::Mapped => Owners::Mapped,
            OwnerMapping::Squash => Owners::Squash { uid: 0, gid: 0 },
            OwnerMapping::Passthrough => Owners::Passthrough,
        },
        cache: match share.cache {
            CachePolicy::None => fs::CachePolicy::Never,
            CachePolicy::Auto => fs::CachePolicy::Auto,
            CachePolicy::Always => fs::CachePolicy::Always,
        },
        filter: Filter::new(share.filter.public_only, &share.filter.hidden),
        ..FsOptions::new(share.tag_at(index))
    };
    Ok((DeviceSetup::Fs(options), directory))
}

fn refused(share: &ShareSpec, error: FsError) -> Error {
    let path = &share.host_path;
    match error {
        FsError::Missing(_) => Error::file(
            SETTING,
            path,
            "there is no such directory",
            "make it, or check the path",
        ),
        FsError::NotADirectory(_) => Error::file(
            SETTING,
            path,
            "it is not a directory, and only directories can be shared",
            "share the directory that it is in",
        ),
        FsError::Permission(_) => Error::file(
            SETTING,
            path,
            "this user may not open it",
            "change its mode, or share another directory",
        ),
        other => Error::file(SETTING, path, other.to_string(), "check it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn share_that_is_missing_or_a_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();

        for (path, reason) in [
            (folder.path().join("missing"), "no such directory"),
            (file, "not a directory"),
        ] {
            let error = open(0, &ShareSpec::new(&path, "/mnt")).err().unwrap();
            let text = error.to_string();
            assert!(matches!(error, Error::File { .. }), "{text}");
            assert!(
                text.starts_with("share: ") && text.contains(reason),
                "{text}"
            );
        }
    }

    #[test]
    fn share_without_a_tag_is_called_by_its_position() {
        let folder = tempfile::tempdir().unwrap();

        let (setup, _) = open(4, &ShareSpec::new(folder.path(), "/mnt")).unwrap();

        let DeviceSetup::Fs(options) = setup else {
            panic!("{setup:?}")
        };
        assert_eq!(options.tag, "share4");
        assert!(options.read_only);
    }
}
