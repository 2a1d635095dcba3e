//! The file in which the firmware keeps its variables.

use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};

use capsa_core::{Error, Result};
use rustix::fs::{FlockOperation, MemfdFlags};

use super::firmware::{Firmware, check_total, open_flash};

/// Checks the store that is there, or that one can be made.
///
/// # Errors
/// [`Error::File`].
pub(super) fn check(store: Option<&Path>, firmware: &Firmware) -> Result<()> {
    match store {
        Some(path) if is_there(path) => existing(path, firmware).map(drop),
        Some(path) => {
            firmware.first_variables()?;
            match folder(path).is_dir() {
                true => Ok(()),
                false => Err(unmakeable(path, &io::ErrorKind::NotFound.into())),
            }
        }
        None => firmware.first_variables().map(drop),
    }
}

/// Opens the store, which is made where it is missing; without one, variables that end with the VM.
///
/// # Errors
/// [`Error::File`], for a store that another VM uses too.
pub(super) fn open(store: Option<&Path>, firmware: &Firmware) -> Result<File> {
    let Some(path) = store else {
        return forgotten(firmware);
    };
    if !is_there(path) {
        make(path, firmware)?;
    }
    existing(path, firmware)
}

/// Whatever it is: a link that leads nowhere must not be taken for a missing file.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn existing(path: &Path, firmware: &Firmware) -> Result<File> {
    let (file, size) = open_flash("variable_store", path, true)?;
    check_total(firmware, path, size)?;
    // A lock of the open file: it goes to QEMU with the descriptor and ends with that.
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::file(
            "variable_store",
            path,
            "another VM is using it",
            "give each VM a variable store of its own, or stop the other VM",
        )),
        Err(error) => Err(Error::file(
            "variable_store",
            path,
            format!("it cannot be locked: {error}"),
            "put it on a file system with locks",
        )),
    }
}

/// Makes a store under another name first, so that nobody ever sees half of one.
fn make(path: &Path, firmware: &Firmware) -> Result<()> {
    let (_, mut template, _) = firmware.first_variables()?;
    let cannot = |error: io::Error| unmakeable(path, &error);
    let mut file = tempfile::NamedTempFile::new_in(folder(path)).map_err(cannot)?;
    io::copy(&mut template, file.as_file_mut()).map_err(cannot)?;
    file.as_file().sync_all().map_err(cannot)?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        // Somebody else made it meanwhile: that one is used.
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(cannot(error.error)),
    }
}

fn forgotten(firmware: &Firmware) -> Result<File> {
    let (path, mut template, _) = firmware.first_variables()?;
    let mut copy = || {
        let memory = rustix::fs::memfd_create("capsa-uefi-variables", MemfdFlags::CLOEXEC)?;
        let mut memory = File::from(memory);
        io::copy(&mut template, &mut memory)?;
        memory.rewind()?;
        Ok(memory)
    };
    copy().map_err(|error: io::Error| {
        Error::file(
            "firmware",
            path,
            format!("its variables cannot be copied: {error}"),
            "check the file, and the host's free memory",
        )
    })
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

fn unmakeable(path: &Path, error: &io::Error) -> Error {
    Error::file(
        "variable_store",
        path,
        format!("it cannot be made: {error}"),
        "give a path in a directory that exists and that you may write to",
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::*;

    struct Place {
        folder: tempfile::TempDir,
        firmware: Firmware,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let mut content = vec![0; 4096];
            content[40..44].copy_from_slice(b"_FVH");
            let code = folder.path().join("CODE.fd");
            fs::write(&code, &content).unwrap();
            fs::write(folder.path().join("VARS.fd"), vec![7; 4096]).unwrap();
            let firmware = Firmware::find(Some(&code)).unwrap();
            Self { folder, firmware }
        }

        fn store(&self) -> PathBuf {
            self.folder.path().join("store")
        }
    }

    #[test]
    fn missing_store_is_made_from_the_template_and_only_at_the_start() {
        let place = Place::new();
        let store = place.store();

        check(Some(&store), &place.firmware).unwrap();
        assert!(!store.exists());
        drop(open(Some(&store), &place.firmware).unwrap());

        assert_eq!(fs::read(&store).unwrap(), vec![7; 4096]);
    }

    #[test]
    fn existing_store_is_kept_as_it_is() {
        let place = Place::new();
        fs::write(place.store(), vec![9; 4096]).unwrap();

        drop(open(Some(&place.store()), &place.firmware).unwrap());

        assert_eq!(fs::read(place.store()).unwrap(), vec![9; 4096]);
    }

    #[test]
    fn store_in_use_is_refused() {
        let place = Place::new();
        let held = open(Some(&place.store()), &place.firmware).unwrap();

        let error = open(Some(&place.store()), &place.firmware).unwrap_err();

        assert!(error.to_string().contains("another VM is using it"));
        drop(held);
        assert!(check(Some(&place.store()), &place.firmware).is_ok());
    }

    #[test]
    fn store_that_cannot_be_made_or_used_is_refused_by_setting() {
        let place = Place::new();
        let nowhere = place.folder.path().join("missing/store");
        let link = place.folder.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let huge = place.folder.path().join("huge");
        fs::File::create(&huge).unwrap().set_len(8 << 20).unwrap();

        for path in [&nowhere, &link, &huge] {
            let error = check(Some(path), &place.firmware).unwrap_err();
            assert!(error.to_string().starts_with("variable_store: "), "{error}");
            assert!(open(Some(path), &place.firmware).is_err());
        }
    }

    #[test]
    fn variables_without_a_store_are_a_copy() {
        let place = Place::new();
        let mut memory = open(None, &place.firmware).unwrap();
        let mut content = Vec::new();
        memory.read_to_end(&mut content).unwrap();
        assert_eq!(content, vec![7; 4096]);
    }
}
