//! Finding firmware: a file with code, and one with empty variables that belongs to it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use capsa_core::{BackendKind, Error, Result};

/// Where distributions put OVMF for x86-64, without secure boot, which would need system management
/// mode: Debian and Ubuntu, Fedora, Arch, openSUSE.
const PLACES: &[(&str, &str)] = &[
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
];

/// The most that both flash chips of the machine have together.
const MAX_FLASH: u64 = 8 << 20;
/// Both begin and end at a page.
const PAGE: u64 = 4096;
/// Where the signature of a firmware volume stands in it (UEFI PI 1.8, volume 3, §3.2.1).
const VOLUME_SIGNATURE: (usize, &[u8]) = (40, b"_FVH");

/// Firmware that is there.
#[derive(Debug)]
pub(super) struct Firmware {
    /// The code, opened.
    pub(super) file: File,
    /// Its size in bytes.
    pub(super) size: u64,
    /// The file with the variables as they are at first; `None` where there is none beside it.
    pub(super) template: Option<PathBuf>,
    path: PathBuf,
}

impl Firmware {
    /// The named firmware, or the first of those that distributions install.
    ///
    /// # Errors
    /// [`Error::File`] for a named one that cannot be used, [`Error::Unsupported`] where there is
    /// none.
    pub(super) fn find(named: Option<&Path>) -> Result<Self> {
        match named {
            Some(path) => Self::named(path),
            None => Self::installed(PLACES),
        }
    }

    fn installed(places: &[(&str, &str)]) -> Result<Self> {
        let place = places
            .iter()
            .find(|(code, variables)| Path::new(code).exists() && Path::new(variables).exists());
        match place {
            Some((code, variables)) => Self::open(Path::new(code), Some(variables.into())),
            None => Err(Error::unsupported(
                "UEFI boot without UEFI firmware, which is not installed",
                BackendKind::Qemu,
                "install it (Debian and Ubuntu: `apt-get install ovmf`; Fedora: \
                 `dnf install edk2-ovmf`), or name a file with UefiBootConfig::firmware",
            )),
        }
    }

    fn named(path: &Path) -> Result<Self> {
        let template = path
            .file_name()
            .and_then(|name| name.to_str())
            .filter(|name| name.contains("CODE") || name.contains("code"))
            .map(|name| path.with_file_name(name.replace("CODE", "VARS").replace("code", "vars")))
            .filter(|template| template.exists());
        Self::open(path, template)
    }

    fn open(path: &Path, template: Option<PathBuf>) -> Result<Self> {
        let (mut file, size) = open_flash("firmware", path, false)?;
        let mut start = [0; 64];
        let unreadable = |error: std::io::Error| {
            Error::file(
                "firmware",
                path,
                format!("it cannot be read: {error}"),
                "check the file and the disk it lies on",
            )
        };
        let count = file.read(&mut start).map_err(unreadable)?;
        if !is_volume(&start[..count]) {
            return Err(Error::file(
                "firmware",
                path,
                "it is no UEFI firmware: it does not begin with a firmware volume",
                "give the file with the firmware's code, such as OVMF_CODE_4M.fd, or none for the \
                 installed one",
            ));
        }
        Ok(Self {
            file,
            size,
            template,
            path: path.to_owned(),
        })
    }

    /// The variables as they are at first.
    ///
    /// # Errors
    /// [`Error::File`] where there are none beside firmware of the caller's own.
    pub(super) fn first_variables(&self) -> Result<(&Path, File, u64)> {
        let Some(template) = &self.template else {
            return Err(Error::file(
                "firmware",
                &self.path,
                "there is no file with its empty variables beside it",
                "name it with CODE in its name, and put the variables beside it under the same name \
                 with VARS instead; or make the variable store yourself, as a copy of them",
            ));
        };
        let (file, size) = open_flash("firmware", template, false)?;
        Ok((template, file, size))
    }
}

fn is_volume(start: &[u8]) -> bool {
    let (at, signature) = VOLUME_SIGNATURE;
    start
        .get(at..)
        .is_some_and(|rest| rest.starts_with(signature))
}

/// Opens a file that is to be a flash chip's content.
///
/// # Errors
/// [`Error::File`] naming `setting`.
pub(super) fn open_flash(setting: &str, path: &Path, write: bool) -> Result<(File, u64)> {
    let refuse = |reason: String, fix: &str| Err(Error::file(setting, path, reason, fix));
    // Without waiting for the other side of a named pipe.
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) => {
            let to = if write { "read and write" } else { "read" };
            return refuse(
                format!("it cannot be opened: {error}"),
                &format!("check the path, and that you may {to} it"),
            );
        }
    };
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(error) => return refuse(format!("it cannot be looked at: {error}"), "check it"),
    };
    let size = metadata.len();
    if !metadata.is_file() {
        return refuse(
            "it is a directory, device, pipe or socket".to_owned(),
            "give the path of a file",
        );
    }
    if size == 0 || size > MAX_FLASH || !size.is_multiple_of(PAGE) {
        return refuse(
            format!("it has {size} bytes, and a flash chip has whole pages of 4 KiB, up to 8 MiB"),
            "give a file that belongs to UEFI firmware",
        );
    }
    Ok((file, size))
}

/// Checks that both chips fit the machine.
///
/// # Errors
/// [`Error::File`] for the variable store.
pub(super) fn check_total(firmware: &Firmware, path: &Path, size: u64) -> Result<()> {
    if firmware.size.saturating_add(size) > MAX_FLASH {
        return Err(Error::file(
            "variable_store",
            path,
            "together with the firmware it has more than 8 MiB",
            "give a variable store that was made for this firmware, or the path of a new one",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn volume(bytes: usize) -> Vec<u8> {
        let mut content = vec![0; bytes];
        content[40..44].copy_from_slice(b"_FVH");
        content
    }

    #[test]
    fn firmware_that_is_not_installed_is_unsupported_with_the_package() {
        let error = Firmware::installed(&[("/nowhere/CODE", "/nowhere/VARS")]).unwrap_err();

        assert!(matches!(error, Error::Unsupported { .. }));
        assert!(error.to_string().contains("apt-get install ovmf"));
    }

    #[test]
    fn named_firmware_finds_its_variables_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let code = folder.path().join("MY_CODE.fd");
        fs::write(&code, volume(8192)).unwrap();
        let lone = Firmware::find(Some(&code)).unwrap();
        assert!(lone.first_variables().is_err());
        fs::write(folder.path().join("MY_VARS.fd"), volume(4096)).unwrap();

        let firmware = Firmware::find(Some(&code)).unwrap();

        assert_eq!(firmware.first_variables().unwrap().2, 4096);
    }

    #[test]
    fn files_that_are_no_firmware_are_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("firmware");
        let refusal = || Firmware::find(Some(&path)).unwrap_err().to_string();

        assert!(refusal().contains("cannot be opened"));
        fs::write(&path, "").unwrap();
        assert!(refusal().contains("it has 0 bytes"));
        fs::write(&path, vec![0; 4097]).unwrap();
        assert!(refusal().contains("it has 4097 bytes"));
        fs::write(&path, vec![0; 4096]).unwrap();
        assert!(refusal().contains("it is no UEFI firmware"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(refusal().contains("firmware: "));
    }
}
