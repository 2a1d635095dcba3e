//! Disks on QEMU's own block layer. What they consist of is opened and locked by `capsa-virtio`, as
//! for every other VM; QEMU is handed descriptors and told what each is.

use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;

use capsa_core::{DiskAccess, DiskFormat, DiskSpec, Error, Result};
use capsa_virtio::block::image::{
    DiskAccess as ImageAccess, DiskSource, ImageFormat, LayerPlan, OpenDisk, Overlay,
};
use serde_json::{Value, json};

/// A disk as QEMU is told of it.
#[derive(Debug)]
pub(super) struct Disk {
    /// Its images, the uppermost first, each with its descriptor's number.
    layers: Vec<Layer>,
    serial: Option<String>,
}

#[derive(Debug)]
struct Layer {
    plan: LayerPlan,
    descriptor: RawFd,
    block_device: bool,
}

/// Checks that the disk can be opened, without making an overlay's file.
///
/// # Errors
/// [`Error::File`], [`Error::InvalidSetting`].
pub(super) fn check(disk: &DiskSpec) -> Result<()> {
    check_serial(disk)?;
    let access = match disk.access {
        DiskAccess::ReadWrite => ImageAccess::ReadWrite,
        _ => ImageAccess::ReadOnly,
    };
    open(disk, access).map(drop)
}

fn check_serial(disk: &DiskSpec) -> Result<()> {
    let fine =
        |serial: &String| serial.len() <= 20 && serial.bytes().all(|byte| byte.is_ascii_graphic());
    match &disk.serial {
        Some(serial) if !fine(serial) => Err(Error::invalid_setting(
            "serial",
            serial,
            "a disk's serial number has up to 20 characters of ASCII without blanks",
            "shorten it",
        )),
        _ => Ok(()),
    }
}

fn open(disk: &DiskSpec, access: ImageAccess) -> Result<OpenDisk> {
    let source = DiskSource {
        path: disk.path.clone(),
        format: disk.format.map(|format| match format {
            DiskFormat::Qcow2 => ImageFormat::Qcow2,
            _ => ImageFormat::Raw,
        }),
        access,
        allow_backing: disk.allow_backing_file,
    };
    source.open().map_err(|error| {
        Error::file(
            "disk",
            &disk.path,
            error.to_string(),
            "change the disk as it says, or give another",
        )
    })
}

impl Disk {
    /// Opens everything that the disk consists of; its descriptors get numbers from `first` on.
    ///
    /// # Errors
    /// As [`check`].
    pub(super) fn open(disk: &DiskSpec, first: RawFd) -> Result<(Self, Vec<OwnedFd>)> {
        check_serial(disk)?;
        let access = match &disk.access {
            DiskAccess::ReadOnly => ImageAccess::ReadOnly,
            DiskAccess::Overlay { layer: None } => ImageAccess::Overlay(Overlay::Temporary(None)),
            DiskAccess::Overlay { layer: Some(path) } => {
                ImageAccess::Overlay(Overlay::Kept(path.clone()))
            }
            _ => ImageAccess::ReadWrite,
        };
        let (plans, files) = open(disk, access)?.into_parts();
        let layers = (first..)
            .zip(plans.into_iter().zip(&files))
            .map(|(descriptor, (plan, file))| Layer {
                plan,
                descriptor,
                block_device: is_block_device(file),
            })
            .collect();
        let disk = Self {
            layers,
            serial: disk.serial.clone(),
        };
        Ok((disk, files))
    }

    /// Numbers of its descriptors.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.layers.iter().map(|layer| layer.descriptor)
    }

    /// The block node `name` (QAPI's `BlockdevOptions`): each image over the next, by no name that
    /// an image could choose.
    pub(super) fn node(&self, name: &str) -> Value {
        let mut below = Value::Null;
        for (index, layer) in self.layers.iter().enumerate().rev() {
            let driver = match layer.plan.format {
                ImageFormat::Raw => "raw",
                ImageFormat::Qcow2 => "qcow2",
            };
            let mut node = json!({
                "driver": driver,
                "read-only": !layer.plan.writable,
                "discard": "unmap",
                "file": {
                    "driver": if layer.block_device { "host_device" } else { "file" },
                    "filename": descriptor_set(layer.descriptor),
                    "read-only": !layer.plan.writable,
                    "discard": "unmap",
                    // It is locked already, and the lock is the descriptor's.
                    "locking": "off",
                },
            });
            if layer.plan.format == ImageFormat::Qcow2 {
                // Null for none: then no name in the image is followed.
                node["backing"] = below;
            }
            if index == 0 {
                node["node-name"] = json!(name);
            }
            below = node;
        }
        below
    }

    /// The device on the node `node`.
    pub(super) fn device(&self, node: &str) -> Value {
        let mut device = json!({ "driver": "virtio-blk-pci", "drive": node });
        if let Some(serial) = &self.serial {
            device["serial"] = json!(serial);
        }
        device
    }
}

/// The name under which QEMU opens a descriptor again that it was given with `-add-fd`.
pub(super) fn descriptor_set(descriptor: RawFd) -> String {
    format!("/dev/fdset/{descriptor}")
}

fn is_block_device(file: &OwnedFd) -> bool {
    let file = file.try_clone().map(std::fs::File::from);
    file.and_then(|file| file.metadata())
        .is_ok_and(|metadata| metadata.file_type().is_block_device())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(folder: &tempfile::TempDir) -> DiskSpec {
        let path = folder.path().join("a disk, \"quoted\"");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        DiskSpec::new(path)
    }

    #[test]
    fn raw_disk_is_one_node_on_its_descriptor() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = raw(&folder);
        spec.serial = Some("root".into());

        let (disk, files) = Disk::open(&spec, 10).unwrap();

        assert_eq!(files.len(), 1);
        let node = disk.node("disk0");
        assert_eq!(node["driver"], "raw");
        assert_eq!(node["read-only"], false);
        assert_eq!(node["file"]["filename"], "/dev/fdset/10");
        assert_eq!(disk.device("disk0")["serial"], "root");
    }

    #[test]
    fn overlay_lies_over_an_image_that_is_only_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = raw(&folder);
        spec.access = DiskAccess::Overlay { layer: None };

        let (disk, files) = Disk::open(&spec, 10).unwrap();

        assert_eq!(files.len(), 2);
        let node = disk.node("disk0");
        assert_eq!(
            (&node["driver"], &node["read-only"]),
            (&json!("qcow2"), &json!(false))
        );
        let below = &node["backing"];
        assert_eq!(
            (&below["driver"], &below["read-only"]),
            (&json!("raw"), &json!(true))
        );
        assert_eq!(below["file"]["filename"], "/dev/fdset/11");
        assert!(below.get("node-name").is_none());
    }

    #[test]
    fn kept_overlay_is_not_made_by_a_check() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = raw(&folder);
        let layer = folder.path().join("layer");
        spec.access = DiskAccess::Overlay {
            layer: Some(layer.clone()),
        };

        check(&spec).unwrap();

        assert!(!layer.exists());
    }

    #[test]
    fn disk_that_is_missing_or_in_use_or_has_a_strange_serial_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let spec = raw(&folder);
        let _held = Disk::open(&spec, 10).unwrap();
        let missing = DiskSpec::new(folder.path().join("missing"));
        let named = DiskSpec {
            serial: Some("one two".into()),
            ..spec.clone()
        };

        assert!(check(&spec).unwrap_err().to_string().contains("in use"));
        assert!(
            check(&missing)
                .unwrap_err()
                .to_string()
                .starts_with("disk: ")
        );
        assert!(
            check(&named)
                .unwrap_err()
                .to_string()
                .starts_with("serial: ")
        );
    }
}
