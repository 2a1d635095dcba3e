//! How values are written on vfkit's command line, and what cannot be written there.
//!
//! A `--device` value is `type,key=value,…` without any quoting, so a comma in a value cannot be
//! expressed. A `--bootloader` value is split at commas outside double quotes and has no escape for
//! the quote itself.

use std::ffi::OsString;
use std::path::Path;

use capsa_core::{BackendKind, Error, Result};

/// The longest path of a Unix socket on macOS: `sun_path` has 104 bytes with the closing NUL.
pub const MAX_SOCKET_PATH_BYTES: usize = 103;

/// Refuses what this backend cannot honour.
pub(crate) fn unsupported(setting: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::unsupported(setting, BackendKind::Vfkit, fix)
}

/// The text of a path: macOS file names are UTF-8, and vfkit hands them on as such.
pub(crate) fn path_text<'a>(setting: &str, path: &'a Path) -> Result<&'a str> {
    let text = path.to_str().ok_or_else(|| {
        unsupported(
            format!("a path that is not UTF-8 ({setting}: {})", path.display()),
            "rename the file",
        )
    })?;
    if text.is_empty() || text.contains('\0') {
        return Err(Error::invalid_setting(
            setting,
            format!("{text:?}"),
            "this is not the path of a file",
            "give the path of a file that exists",
        ));
    }
    Ok(text)
}

/// One `--device` value.
pub(crate) struct DeviceArgument(String);

impl DeviceArgument {
    pub(crate) fn new(kind: &str) -> Self {
        Self(kind.to_owned())
    }

    /// Adds a word without a value.
    pub(crate) fn flag(mut self, name: &str) -> Self {
        self.0.push(',');
        self.0.push_str(name);
        self
    }

    /// Adds `key=value`; refuses a value that holds a comma.
    pub(crate) fn value(self, key: &str, value: &str, setting: &str) -> Result<Self> {
        if value.contains(',') {
            return Err(unsupported(
                format!("a comma in {setting} ({value})"),
                "rename it, or use the macos-subprocess backend",
            ));
        }
        Ok(self.flag(&format!("{key}={value}")))
    }

    /// Adds `key=path`.
    pub(crate) fn path(self, key: &str, path: &Path, setting: &str) -> Result<Self> {
        let text = path_text(setting, path)?;
        self.value(key, text, setting)
    }

    pub(crate) fn push_to(self, arguments: &mut Vec<OsString>) {
        arguments.push("--device".into());
        arguments.push(self.0.into());
    }
}

/// Checks the path of a socket that vfkit makes or dials. vfkit percent-decodes it in some places and
/// not in others, so only characters that mean the same in both forms are used.
pub(crate) fn socket_path(path: &Path) -> Result<&str> {
    let text = path_text("runtime directory", path)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-~".contains(c);
    if !text.starts_with('/') || !text.chars().all(plain) {
        return Err(unsupported(
            format!("sockets in a directory with this name ({text})"),
            "set TMPDIR to an absolute path of plain ASCII letters and digits, such as /tmp",
        ));
    }
    if text.len() > MAX_SOCKET_PATH_BYTES {
        return Err(unsupported(
            format!(
                "a socket path of {} bytes ({text}); at most {MAX_SOCKET_PATH_BYTES} fit",
                text.len()
            ),
            "set TMPDIR to a shorter path, such as /tmp",
        ));
    }
    Ok(text)
}
