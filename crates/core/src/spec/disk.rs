//! Block devices of a VM.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The longest serial number of a disk, in bytes.
pub const MAX_DISK_SERIAL: usize = 20;

/// A block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// The image file or block device on the host.
    pub path: PathBuf,
    /// Its format; `None` to probe its content.
    pub format: Option<DiskFormat>,
    /// What the guest may do to it.
    pub access: DiskAccess,
    /// The serial number that the guest sees; at most 20 bytes of ASCII.
    pub serial: Option<String>,
    /// Whether a backing file that a qcow2 image names may be opened.
    pub allow_backing_file: bool,
    /// How fast the guest may read and write.
    #[serde(default)]
    pub limits: DiskLimits,
}

impl DiskSpec {
    /// A disk that the guest reads and writes, its format found by looking at its content.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: None,
            access: DiskAccess::default(),
            serial: None,
            allow_backing_file: false,
            limits: DiskLimits::default(),
        }
    }

    /// Checks what every backend asks for, without looking at the host.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`].
    pub fn check(&self) -> Result<()> {
        if let Some(serial) = &self.serial
            && (serial.len() > MAX_DISK_SERIAL || !serial.bytes().all(|b| b.is_ascii_graphic()))
        {
            return Err(Error::invalid_setting(
                "disk serial",
                serial,
                format!("a serial number is at most {MAX_DISK_SERIAL} visible ASCII characters"),
                "shorten it",
            ));
        }
        let zero = |limit: Option<RateLimit>| {
            limit.is_some_and(|limit| limit.per_second == 0 || limit.burst == 0)
        };
        if zero(self.limits.bytes) || zero(self.limits.operations) {
            return Err(Error::invalid_setting(
                "disk limits",
                0,
                "a rate and a burst are at least 1",
                "leave the limit out for none",
            ));
        }
        Ok(())
    }
}

/// How fast a guest may use a disk; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLimits {
    /// Bytes read and written.
    pub bytes: Option<RateLimit>,
    /// Requests of any size.
    pub operations: Option<RateLimit>,
}

/// A rate, and how much may be used at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Units a second, at least 1.
    pub per_second: u64,
    /// Units at once after a pause, at least 1. A request larger than this passes too, and is paid
    /// back by a longer wait.
    pub burst: u64,
}

impl RateLimit {
    /// So many units a second, and the same at once after a pause.
    pub const fn per_second(units: u64) -> Self {
        Self {
            per_second: units,
            burst: units,
        }
    }
}

/// The format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DiskFormat {
    /// Sectors as they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
}

/// What a guest may do to a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DiskAccess {
    /// Reads and writes reach the image.
    #[default]
    ReadWrite,
    /// Writes fail in the guest.
    ReadOnly,
    /// Writes go to a layer of their own; the image is never written.
    Overlay {
        /// Where the layer is kept; `None` throws it away with the VM.
        layer: Option<PathBuf>,
    },
}
