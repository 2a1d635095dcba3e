//! What this user's keepers keep: a folder for each name, below the user's runtime directory.
//!
//! | file | content |
//! |---|---|
//! | `lock` | locked (`flock`) by the keeper, for as long as it lives |
//! | the [record's](Record::FILE) | what is known of it |
//! | `control.sock` | where the keeper is talked to |
//!
//! A folder whose lock is free and whose record says that it lives belongs to a keeper that is gone.
//! The lock of the whole directory is held, for a moment, by whoever makes or removes a folder; it is
//! removed together with the last one.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::marker::PhantomData;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use capsa_core::{Error, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use super::name;
use super::runtime_directory::{cannot, private_directory, runtime_directory};

const LOCK: &str = "lock";
/// The lock of the whole directory. Not a name: it begins with a dot.
const LOCK_OF_ALL: &str = ".lock";
const SOCKET: &str = "control.sock";
/// A record that is longer is none of ours.
const MAX_RECORD_BYTES: u64 = 1 << 20;

/// What is written down of one kind of things.
pub(crate) trait Record: Serialize + Sized {
    /// What such a thing is called: `sandbox`.
    const KIND: &'static str;
    /// The record's file.
    const FILE: &'static str;
    /// The directory of their folders below the runtime directory, which is no name; `None` where it
    /// is that itself.
    const BELOW: Option<&'static str>;
    /// The commands that list and remove them.
    const COMMANDS: (&'static str, &'static str);
    /// What keeps one that lives from being removed, and what to do about it.
    const LIVES: &'static str;

    /// From a file's content; `None` where this version cannot read it.
    fn parse(bytes: &[u8]) -> Option<Self>;
    /// The thing's name.
    fn name(&self) -> &str;
    /// Whether the record says that its keeper lives.
    fn is_alive(&self) -> bool;
    /// Whether it is known to have crashed.
    fn is_crashed(&self) -> bool;
    /// Its keeper turned out to be gone.
    fn set_crashed(&mut self);
    /// Where its files are.
    fn set_directory(&mut self, directory: PathBuf);
}

/// The directory with everybody's folders.
#[derive(Debug)]
pub(crate) struct Registry<R> {
    directory: PathBuf,
    kind: PhantomData<fn() -> R>,
}

/// A folder that this process has made and holds.
#[derive(Debug)]
pub(crate) struct Claim<R> {
    registry: Registry<R>,
    folder: PathBuf,
    record: R,
    /// Locked as long as it is open.
    lock: File,
}

/// The lock of the whole directory. Dropping it removes the lock where there is no folder.
struct LockOfAll<'a> {
    directory: &'a Path,
    nested: bool,
    _locked: File,
}

impl<R> Clone for Registry<R> {
    fn clone(&self) -> Self {
        Self {
            directory: self.directory.clone(),
            kind: PhantomData,
        }
    }
}

impl<R: Record> Registry<R> {
    /// The calling user's; made where it is not there yet.
    ///
    /// # Errors
    /// Where it cannot be made, or belongs to somebody else.
    pub(crate) fn open() -> Result<Self> {
        let mut directory = runtime_directory();
        private_directory(&directory)?;
        if let Some(below) = R::BELOW {
            directory.push(below);
        }
        Ok(Self {
            directory,
            kind: PhantomData,
        })
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the keeper of this name is talked to.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.folder(name).join(SOCKET)
    }

    /// Takes the name of `record` for this process.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a name that is none or is taken.
    pub(crate) fn claim(&self, record: R) -> Result<Claim<R>> {
        name::check(R::KIND, record.name())?;
        let _all = self.lock_all()?;
        let folder = self.folder(record.name());
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(self.taken(record.name()));
            }
            Err(error) => return Err(cannot("make", &folder, error)),
        }
        let claimed = lock_file(&folder.join(LOCK)).and_then(|lock| {
            let claim = Claim {
                registry: self.clone(),
                folder: folder.clone(),
                record,
                lock,
            };
            claim.write()?;
            Ok(claim)
        });
        if claimed.is_err() {
            let _gone = fs::remove_dir_all(&folder);
        }
        claimed
    }

    fn taken(&self, name: &str) -> Error {
        let remove = R::COMMANDS.1;
        let (state, fix) = match self.look(name) {
            Ok(record) if record.is_alive() => ("runs", R::LIVES.to_owned()),
            Ok(record) if record.is_crashed() => ("crashed", format!("`{remove}` that one")),
            _ => ("has ended", format!("`{remove}` that one")),
        };
        Error::invalid_setting(
            "name",
            name,
            format!("a {} of this name {state}", R::KIND),
            format!("choose another, or {fix}"),
        )
    }

    /// Every one, by name.
    ///
    /// # Errors
    /// Where the directory cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<R>> {
        let _all = self.lock_all()?;
        let entries = fs::read_dir(&self.directory)
            .map_err(|error| cannot("read", &self.directory, error))?;
        let mut found: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name::check(R::KIND, name).is_ok())
            .filter_map(|name| self.read(&name).ok())
            .collect();
        found.sort_by(|a: &R, b| a.name().cmp(b.name()));
        Ok(found)
    }

    /// What is known of the one of this name.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] where there is none.
    pub(crate) fn get(&self, name: &str) -> Result<R> {
        name::check(R::KIND, name)?;
        let _all = self.lock_all()?;
        self.look(name)
    }

    fn look(&self, name: &str) -> Result<R> {
        self.read(name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::invalid_setting(
                R::KIND,
                name,
                "there is none of this name",
                format!("`{}` lists those that there are", R::COMMANDS.0),
            ),
            _ => cannot("read", &self.folder(name), error),
        })
    }

    fn read(&self, name: &str) -> io::Result<R> {
        let folder = self.folder(name);
        let held = is_locked(&folder.join(LOCK))?;
        let file = folder.join(R::FILE);
        if fs::metadata(&file)?.len() > MAX_RECORD_BYTES {
            return Err(io::Error::other("its record is too long"));
        }
        let mut record = R::parse(&fs::read(&file)?)
            .ok_or_else(|| io::Error::other("its record is of another version of capsa"))?;
        if !held && record.is_alive() {
            record.set_crashed();
        }
        record.set_directory(folder);
        Ok(record)
    }

    /// Waits until nobody looks after the one of this name. Blocks.
    ///
    /// # Errors
    /// Where its folder cannot be read. That there is none is none.
    pub(crate) fn wait_for_owner(&self, name: &str) -> Result<()> {
        name::check(R::KIND, name)?;
        let path = self.folder(name).join(LOCK);
        let waited = File::options().write(true).open(&path).and_then(|file| {
            while let Err(error) = flock(&file, FlockOperation::LockShared) {
                if error != Errno::INTR {
                    return Err(error.into());
                }
            }
            Ok(())
        });
        match waited {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(cannot("wait for", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Removes what is kept of one that has ended or crashed.
    ///
    /// # Errors
    /// [`Error::InvalidState`] where it lives.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        name::check(R::KIND, name)?;
        let _all = self.lock_all()?;
        let folder = self.folder(name);
        match is_locked(&folder.join(LOCK)) {
            Ok(true) => {
                return Err(Error::InvalidState {
                    operation: "remove it",
                    state: format!("{name} runs; {}", R::LIVES),
                });
            }
            // Without a lock it was never finished.
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if !folder.is_dir() {
                    return self.look(name).map(drop);
                }
            }
            Err(error) => return Err(cannot("read", &folder, error)),
        }
        fs::remove_dir_all(&folder).map_err(|error| cannot("remove", &folder, error))
    }

    fn lock_all(&self) -> Result<LockOfAll<'_>> {
        let nested = R::BELOW.is_some();
        let path = self.directory.join(LOCK_OF_ALL);
        loop {
            match private_directory(&self.directory) {
                // Whoever removed the last folder took the directory with it.
                Err(Error::Io { source, .. })
                    if nested && source.kind() == io::ErrorKind::NotFound =>
                {
                    continue;
                }
                checked => checked?,
            }
            let file = match open_lock(&path) {
                Err(error) if nested && error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(|error| cannot("open", &path, error))?,
            };
            match flock(&file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(cannot("lock", &path, error.into())),
                Ok(()) => {}
            }
            // Not one that was removed while it was waited for: others lock another by now.
            let is_it = file.metadata().ok().zip(fs::metadata(&path).ok());
            if is_it.is_some_and(|(ours, there)| ours.ino() == there.ino()) {
                return Ok(LockOfAll {
                    directory: &self.directory,
                    nested,
                    _locked: file,
                });
            }
        }
    }
}

impl Drop for LockOfAll<'_> {
    fn drop(&mut self) {
        let Ok(mut entries) = fs::read_dir(self.directory) else {
            return;
        };
        let is_none = |entry: fs::DirEntry| entry.file_name().as_encoded_bytes().starts_with(b".");
        if entries.all(|entry| entry.is_ok_and(is_none)) {
            let _there = fs::remove_file(self.directory.join(LOCK_OF_ALL));
            if self.nested {
                let _there = fs::remove_dir(self.directory);
            }
        }
    }
}

impl<R: Record> Claim<R> {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join(SOCKET)
    }

    pub(crate) fn record(&self) -> &R {
        &self.record
    }

    /// Changes the record.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut R)) -> Result<()> {
        change(&mut self.record);
        self.write()
    }

    fn write(&self) -> Result<()> {
        let path = self.folder.join(R::FILE);
        let next = self.folder.join(format!("{}.next", R::FILE));
        serde_json::to_vec_pretty(&self.record)
            .map_err(io::Error::from)
            .and_then(|text| fs::write(&next, text))
            .and_then(|()| fs::rename(&next, &path))
            .map_err(|error| cannot("write", &path, error))
    }

    /// Lets go of it: the folder stays, to be looked at and removed.
    pub(crate) fn keep(self) {
        let _gone = fs::remove_file(self.socket());
    }

    /// Removes the folder.
    pub(crate) fn remove(self) {
        if let Ok(all) = self.registry.lock_all() {
            let _gone = fs::remove_dir_all(&self.folder);
            drop(all);
        }
        drop(self.lock);
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

/// Opens and locks a file that nobody else has locked.
fn lock_file(path: &Path) -> Result<File> {
    open_lock(path)
        .and_then(|file| {
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            Ok(file)
        })
        .map_err(|error| cannot("lock", path, error))
}

fn is_locked(path: &Path) -> io::Result<bool> {
    let file = File::options().write(true).open(path)?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use capsa_core::{MemorySize, VmExit};

    use super::*;
    use crate::sandbox::detached::record::{Facts, SandboxInfo, SandboxState};

    fn registry() -> (tempfile::TempDir, Registry<SandboxInfo>) {
        let directory = tempfile::tempdir().unwrap();
        let registry = Registry {
            directory: directory.path().to_owned(),
            kind: PhantomData,
        };
        (directory, registry)
    }

    fn record(name: &str) -> SandboxInfo {
        SandboxInfo::new(Facts {
            name: name.to_owned(),
            rootfs: "minimal".to_owned(),
            command: Vec::new(),
            cpus: 1,
            memory: MemorySize::mib(64),
            remove_at_end: false,
        })
    }

    #[test]
    fn claimed_name_is_listed_and_refused_to_others() {
        let (_directory, registry) = registry();
        let claim = registry.claim(record("one")).unwrap();

        let second = registry.claim(record("one")).unwrap_err();

        assert!(second.to_string().contains("runs"), "{second}");
        let listed = registry.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].state, SandboxState::Starting);
        assert!(registry.remove("one").is_err());
        claim.remove();
        assert!(registry.list().unwrap().is_empty());
    }

    #[test]
    fn nothing_is_left_when_the_last_folder_is_removed() {
        let (directory, registry) = registry();
        let (first, second) = (
            registry.claim(record("one")).unwrap(),
            registry.claim(record("two")).unwrap(),
        );
        let left = || fs::read_dir(directory.path()).unwrap().count();

        first.remove();
        let with_one = left();
        second.remove();

        // A folder and the lock of all.
        assert_eq!((with_one, left()), (2, 0));
    }

    #[test]
    fn lock_that_comes_and_goes_is_held_by_one_at_a_time() {
        let (directory, registry) = registry();
        let inside = AtomicBool::new(false);

        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let _all = registry.lock_all().unwrap();
                        assert!(!inside.swap(true, Ordering::SeqCst));
                        std::thread::yield_now();
                        inside.store(false, Ordering::SeqCst);
                    }
                });
            }
        });

        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn folder_whose_owner_is_gone_is_crashed_and_can_be_removed() {
        let (directory, registry) = registry();
        drop(registry.claim(record("one")).unwrap());

        let state = registry.get("one").unwrap().state;
        let again = registry.claim(record("one")).unwrap_err();
        registry.remove("one").unwrap();

        assert_eq!(state, SandboxState::Crashed);
        assert!(again.to_string().contains("capsa rm"), "{again}");
        assert!(!directory.path().join("one").exists());
    }

    #[test]
    fn ended_sandbox_is_kept_until_it_is_removed() {
        let (_directory, registry) = registry();
        let mut claim = registry.claim(record("one")).unwrap();
        let ended = SandboxState::Ended {
            at: 1,
            exit: VmExit::PoweredOff,
            command: None,
        };
        claim.update(|record| record.state = ended.clone()).unwrap();
        claim.keep();

        assert_eq!(registry.get("one").unwrap().state, ended);
        registry.remove("one").unwrap();
        assert!(registry.get("one").is_err());
    }
}
