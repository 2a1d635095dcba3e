use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Arch;
use crate::inspect::KernelFormat;

/// The file in a kernel's folder that its [`KernelRecord`] is kept in, as JSON.
pub const RECORD_FILE: &str = "kernel.json";
/// A record is under a kilobyte; a larger file is none of ours.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What is written down about a stored kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KernelRecord {
    /// Its name in the store.
    pub name: String,
    /// Its release, as `uname -r` gives it, where it could be found.
    pub version: Option<String>,
    /// What it runs on.
    pub arch: Arch,
    /// The container.
    pub format: KernelFormat,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// Where it came from: the imported file, or what it was built of.
    pub source: String,
    /// For a kernel that was built here, the hash of everything that went into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<String>,
    /// When it was put into the store, in seconds since 1970.
    pub created_unix_seconds: u64,
}

pub(super) fn read(folder: &Path) -> Option<KernelRecord> {
    let mut bytes = Vec::new();
    File::open(folder.join(RECORD_FILE))
        .ok()?
        .take(MAX_RECORD_BYTES)
        .read_to_end(&mut bytes)
        .ok()?;
    serde_json::from_slice(&bytes).ok()
}
