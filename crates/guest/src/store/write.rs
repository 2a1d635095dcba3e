//! Putting kernels into a store and taking them out.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};

use super::record::{KernelRecord, RECORD_FILE};
use super::{KERNEL_FILE, KernelStore, StoreError, StoredKernel};
use crate::fingerprint::copy_hashing;
use crate::inspect::{Detail, KernelImage, inspect_reader};

/// A kernel on its way into a store.
#[derive(Clone, Debug)]
pub(crate) struct NewKernel<'a> {
    pub(crate) file: &'a Path,
    pub(crate) image: KernelImage,
    pub(crate) source: String,
    pub(crate) recipe: Option<String>,
    /// Further files of its folder: name there, and where they are copied from.
    pub(crate) companions: Vec<(&'static str, PathBuf)>,
}

impl<'a> NewKernel<'a> {
    /// A kernel that somebody else built.
    pub(super) fn imported(file: &'a Path, image: KernelImage) -> Self {
        let source = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
        Self {
            file,
            image,
            source: source.display().to_string(),
            recipe: None,
            companions: Vec::new(),
        }
    }
}

impl KernelStore {
    /// Puts `kernel` into the store, in place of one that is called `name` already.
    pub(crate) fn install(
        &self,
        name: &str,
        kernel: &NewKernel<'_>,
    ) -> Result<StoredKernel, StoreError> {
        let folder = self.folder(name)?;
        let _lock = self.lock()?;
        fs::create_dir_all(&folder).map_err(StoreError::io("creating the folder", &folder))?;
        for (companion, from) in &kernel.companions {
            let (staged, ..) = stage(&folder, from)?;
            publish(staged, &folder.join(companion))?;
        }
        let (mut staged, bytes, sha256) = stage(&folder, kernel.file)?;
        // The file may have changed since it was inspected: what counts is the copy.
        let image = inspect_reader(staged.as_file_mut(), kernel.file, Detail::Headers)?;
        let record = KernelRecord {
            name: name.to_owned(),
            version: kernel.image.version.clone(),
            sha256,
            bytes,
            source: kernel.source.clone(),
            recipe: kernel.recipe.clone(),
            created_unix_seconds: now(),
            ..KernelRecord::from(&image)
        };
        let path = folder.join(KERNEL_FILE);
        publish(staged, &path)?;
        write_atomically(
            &folder.join(RECORD_FILE),
            &serde_json::to_vec_pretty(&record)
                .map_err(io::Error::from)
                .map_err(StoreError::io("writing", &folder.join(RECORD_FILE)))?,
        )?;
        Ok(StoredKernel {
            name: name.to_owned(),
            path,
            record: Some(record),
        })
    }

    /// Removes the kernel called `name`; a VM that runs it is not affected.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] where there is none.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let folder = self.folder(name)?;
        let _lock = self.lock()?;
        self.get(name)?;
        // Out of sight in one step; then there is time to delete.
        let grave = tempfile::Builder::new()
            .prefix(".removed-")
            .tempdir_in(self.kernels())
            .map_err(StoreError::io("creating a folder", &self.kernels()))?;
        fs::rename(&folder, grave.path().join(name))
            .map_err(StoreError::io("removing", &folder))?;
        grave.close().map_err(StoreError::io("removing", &folder))
    }

    /// Held by a writer until it is dropped.
    fn lock(&self) -> Result<File, StoreError> {
        let kernels = self.kernels();
        fs::create_dir_all(&kernels).map_err(StoreError::io("creating the folder", &kernels))?;
        let path = kernels.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(StoreError::io("opening the lock", &path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| StoreError::io("locking", &path)(errno.into()))?;
        Ok(file)
    }
}

/// Writes `bytes` to `path` in one step, and creates its folder.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(StoreError::io("creating the folder", folder))?;
    let mut staged = staging_file(folder)?;
    staged
        .write_all(bytes)
        .map_err(StoreError::io("writing", path))?;
    publish(staged, path)
}

/// A copy of `from` beside the place where it will lie, with its length and SHA-256.
fn stage(folder: &Path, from: &Path) -> Result<(tempfile::NamedTempFile, u64, String), StoreError> {
    let mut file = File::open(from).map_err(StoreError::io("reading", from))?;
    let mut staged = staging_file(folder)?;
    let (bytes, sha256) =
        copy_hashing(&mut file, staged.as_file_mut()).map_err(StoreError::io("copying", from))?;
    staged
        .as_file_mut()
        .rewind()
        .map_err(StoreError::io("copying", from))?;
    Ok((staged, bytes, sha256))
}

fn staging_file(folder: &Path) -> Result<tempfile::NamedTempFile, StoreError> {
    use std::os::unix::fs::PermissionsExt;
    tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)
        .map_err(StoreError::io("creating a file", folder))
}

fn publish(staged: tempfile::NamedTempFile, path: &Path) -> Result<(), StoreError> {
    staged
        .as_file()
        .sync_all()
        .map_err(StoreError::io("writing", path))?;
    staged
        .persist(path)
        .map_err(|error| StoreError::io("writing", path)(error.error))?;
    Ok(())
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
