//! Disks: images opened, checked and locked.

use std::os::fd::OwnedFd;

use capsa_core::{DiskAccess, DiskFormat, DiskSpec, Error, RateLimit, Result};
use capsa_virtio::block::image::{self, DiskSource, ImageError, ImageFormat, Overlay};
use capsa_virtio::rate::{Rate, RateLimits};
use capsa_virtio::setup::{BlockSetup, DeviceSetup};

const SETTING: &str = "disk";
const CONVERT: &str = "convert it with `qemu-img convert -O qcow2`";

/// The device and the descriptors of its images; the locks go with them.
pub(super) fn open(disk: &DiskSpec) -> Result<(DeviceSetup, Vec<OwnedFd>)> {
    let source = DiskSource {
        path: disk.path.clone(),
        format: match disk.format {
            None => None,
            Some(DiskFormat::Raw) => Some(ImageFormat::Raw),
            Some(DiskFormat::Qcow2) => Some(ImageFormat::Qcow2),
            Some(other) => return Err(unknown("format", &format!("{other:?}"))),
        },
        access: match &disk.access {
            DiskAccess::ReadWrite => image::DiskAccess::ReadWrite,
            DiskAccess::ReadOnly => image::DiskAccess::ReadOnly,
            DiskAccess::Overlay { layer: None } => {
                image::DiskAccess::Overlay(Overlay::Temporary(None))
            }
            DiskAccess::Overlay { layer: Some(file) } => {
                image::DiskAccess::Overlay(Overlay::Kept(file.clone()))
            }
            other => return Err(unknown("access", &format!("{other:?}"))),
        },
        allow_backing: disk.allow_backing_file,
    };
    let opened = source.open().map_err(|error| refused(disk, error))?;
    // Writes of an overlay never reach what was looked at.
    let keep_raw = opened.was_probed() && disk.access == DiskAccess::ReadWrite;
    let (layers, files) = opened.into_parts();
    let setup = BlockSetup {
        layers,
        serial: disk.serial.clone().unwrap_or_default(),
        limits: RateLimits {
            bytes: disk.limits.bytes.map(rate),
            operations: disk.limits.operations.map(rate),
        },
        queues: 1,
        keep_raw,
    };
    Ok((DeviceSetup::Block(setup), files))
}

fn rate(limit: RateLimit) -> Rate {
    Rate {
        per_second: limit.per_second,
        burst: limit.burst,
    }
}

fn unknown(what: &str, value: &str) -> Error {
    Error::invalid_setting(
        format!("disk {what}"),
        value,
        "this version of capsa does not know it",
        "use another one",
    )
}

/// The error in the words of the setting. Its path may be that of an image below the disk's own.
fn refused(disk: &DiskSpec, error: ImageError) -> Error {
    let refuse = |path, reason: String, fix: &str| Error::file(SETTING, path, reason, fix);
    match error {
        ImageError::Missing(path) => refuse(
            path,
            "there is no such file".to_owned(),
            "check the path, or make it, as with `truncate -s 1G`",
        ),
        ImageError::NotADisk { path, what } => refuse(
            path,
            format!("it is {what}"),
            "give an image file or a block device",
        ),
        ImageError::Permission { path, write: true } => refuse(
            path,
            "this user may not write it".to_owned(),
            "change its mode, or use it read-only or as an overlay",
        ),
        ImageError::Permission { path, write: false } => refuse(
            path,
            "this user may not read it".to_owned(),
            "change its mode",
        ),
        ImageError::ReadOnly(path) => refuse(
            path,
            "it cannot be written here: its file system is read-only, or it is immutable"
                .to_owned(),
            "use it read-only or as an overlay",
        ),
        ImageError::Busy { path, write: true } => refuse(
            path,
            "it is in use by somebody".to_owned(),
            "stop the other VM, or use the image read-only or as an overlay in all of them",
        ),
        ImageError::Busy { path, write: false } => refuse(
            path,
            "it is in use by somebody who writes it".to_owned(),
            "stop the other VM, or use the image as an overlay in both",
        ),
        ImageError::Empty(path) => refuse(
            path,
            "it is empty".to_owned(),
            "give it a size, as with `truncate -s 1G`",
        ),
        ImageError::Format { path, expected } => refuse(
            path,
            format!("it is no {expected} image"),
            "state its format, or none to have it found out",
        ),
        ImageError::Unsupported { path, format } => {
            refuse(path, format!("it is a {format} image"), CONVERT)
        }
        ImageError::Corrupt { path, reason } => refuse(
            path,
            format!("it is corrupt: {reason}"),
            "repair it with `qemu-img check -r all`, or take a copy",
        ),
        ImageError::Encrypted(path) => refuse(path, "it is encrypted".to_owned(), CONVERT),
        ImageError::ExternalData(path) => refuse(
            path,
            "it keeps its data in another file".to_owned(),
            CONVERT,
        ),
        ImageError::Backing { path, backing } => refuse(
            path,
            format!("it is based on {backing:?}, which was not allowed"),
            "allow backing files for this disk if you trust the image",
        ),
        ImageError::TooDeep { path, limit } => refuse(
            path,
            format!("it has more than {limit} backing files, or they form a circle"),
            "join some of them with `qemu-img rebase`",
        ),
        ImageError::OtherBase { path, found, base } => refuse(
            path,
            format!(
                "it is the layer over {found:?}, not over {}",
                base.display()
            ),
            "keep each disk's layer in a file of its own",
        ),
        other => refuse(disk.path.clone(), other.to_string(), "check it"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;

    fn file(folder: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn refusal(disk: &DiskSpec) -> String {
        let error = open(disk).err().unwrap();
        assert!(matches!(error, Error::File { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn disk_that_cannot_be_used_is_refused_with_its_path_and_a_fix() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let vmdk = file(folder, "vmdk", b"KDMV");
        let corrupt = file(folder, "corrupt", b"QFI\xfb\0\0\0\x09");
        let empty = file(folder, "empty", b"");
        for (path, reason) in [
            (folder.join("missing"), "no such file"),
            (folder.to_owned(), "a directory"),
            (empty, "empty"),
            (vmdk, "VMDK"),
            (corrupt, "corrupt"),
        ] {
            let text = refusal(&DiskSpec::new(&path));
            assert!(text.starts_with("disk: "), "{text}");
            assert!(text.contains(&*path.to_string_lossy()), "{text}");
            assert!(text.contains(reason), "{text}");
        }
    }

    #[test]
    fn disk_written_by_one_vm_is_busy_for_all_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let disk = DiskSpec::new(&path);

        let first = open(&disk).unwrap();
        let second = refusal(&disk);
        drop(first);
        let third = open(&disk);

        assert!(second.contains("in use"), "{second}");
        assert!(third.is_ok());
    }

    #[test]
    fn disk_whose_format_was_found_out_keeps_a_guest_from_changing_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let mut disk = DiskSpec::new(&path);
        let kept = |disk: &DiskSpec| match open(disk).unwrap().0 {
            DeviceSetup::Block(setup) => setup.keep_raw,
            other => panic!("{other:?}"),
        };

        assert!(kept(&disk));
        disk.format = Some(DiskFormat::Raw);
        assert!(!kept(&disk));
        disk.format = None;
        disk.access = DiskAccess::Overlay { layer: None };
        assert!(!kept(&disk));
    }
}
