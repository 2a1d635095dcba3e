//! Builds the default guest kernel from Linux sources.
//!
//! The sources are Debian's (package `linux-source-…`) or a tree of the user's. The configuration
//! is `make tinyconfig` with the fragments of `kernel/` on top; what was asked for and did not
//! survive fails the build. The result is kept in the cache under the hash of everything that went
//! into it, so building again takes no time, and is put into a [`KernelStore`].

mod config;
mod error;
mod make;
mod recipe;
mod source;
mod tools;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

pub use error::BuildError;

use crate::Arch;
use crate::inspect::{Detail, inspect_file};
use crate::store::{DEFAULT_KERNEL, KernelStore, NewKernel, StoredKernel};
use make::Make;
use recipe::Recipe;
use source::Source;

/// The file beside an x86 kernel (an ELF file) that holds it as bzImage.
pub const BZIMAGE_FILE: &str = "bzImage";
/// The file beside a kernel that holds its configuration.
pub const CONFIG_FILE: &str = "config";

/// What a build says while it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A part of the work begins.
    Step(&'a str),
    /// A program said this.
    Line(&'a str),
}

/// Where the sources come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceChoice {
    /// Debian's package, which is installed where it is missing and we are root.
    #[default]
    Package,
    /// A clean source tree, which is not written to.
    Directory(PathBuf),
}

/// A kernel to be built.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct KernelBuild {
    /// Where the sources come from.
    pub source: SourceChoice,
    /// What the kernel is for.
    pub arch: Arch,
    /// How many compilers run at once, at least 1.
    pub jobs: usize,
    /// Where build trees and results are kept; a build needs 4 GiB there.
    pub cache: PathBuf,
    /// Its name in the store.
    pub name: String,
}

impl KernelBuild {
    /// The default kernel of this host, from Debian's sources, with the user's cache.
    ///
    /// # Errors
    /// [`BuildError::UnknownHost`] where the host is none that guests can be, and
    /// [`BuildError::NoCacheDirectory`].
    pub fn for_host() -> Result<Self, BuildError> {
        let arch = Arch::host().ok_or(BuildError::UnknownHost)?;
        Self::for_arch(arch)
    }

    /// The default kernel for `arch`: under a name of its own where the host is another.
    ///
    /// # Errors
    /// [`BuildError::NoCacheDirectory`].
    pub fn for_arch(arch: Arch) -> Result<Self, BuildError> {
        let name = if Some(arch) == Arch::host() {
            DEFAULT_KERNEL
        } else {
            arch.name()
        };
        Ok(Self {
            source: SourceChoice::Package,
            arch,
            jobs: std::thread::available_parallelism().map_or(1, usize::from),
            cache: crate::discover::user_cache_directory().ok_or(BuildError::NoCacheDirectory)?,
            name: name.to_owned(),
        })
    }

    /// Debian's packages that the build needs and that are not there; [`KernelBuild::run`] installs
    /// them where it may. For a caller that installs everything it needs in one go.
    pub fn missing_packages(&self) -> Vec<String> {
        tools::missing(&self.source)
    }

    /// Builds the kernel, unless the cache has it, and puts it into `store`, unless that has it.
    ///
    /// # Errors
    /// [`BuildError`], with the end of what the failing program said.
    pub fn run(
        &self,
        store: &KernelStore,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<StoredKernel, BuildError> {
        tools::ensure(self.arch, &self.source, progress)?;
        let source = Source::find(&self.source)?;
        let recipe = Recipe::new(self.arch, &source)?;
        if let Ok(present) = store.get(&self.name)
            && present
                .record
                .as_ref()
                .is_some_and(|record| record.recipe.as_deref() == Some(&recipe.key))
        {
            return Ok(present);
        }
        let result = self.cache.join("kernels").join(&recipe.key);
        if !result.is_dir() {
            self.build(&source, &recipe, &result, progress)?;
        }
        self.install(store, &source, recipe, &result)
    }

    fn build(
        &self,
        source: &Source,
        recipe: &Recipe,
        result: &Path,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        let work = self.cache.join("kernel-build");
        let _lock = lock(&work)?;
        // Another build may have made it while we waited.
        if result.is_dir() {
            return Ok(());
        }
        // What an interrupted build has left.
        let tree = work.join("tree");
        remove(&tree)?;
        let out = tree.join("out");
        make_directory(&out)?;
        let sources = source.unpack(&tree, progress)?;
        let make = Make {
            arch: self.arch,
            sources: &sources,
            out: &out,
            jobs: self.jobs.max(1),
            date: source.date(),
        };
        config::configure(&make, recipe, progress)?;
        progress(Progress::Step("compiling"));
        make.run(make::targets(self.arch), progress)?;
        progress(Progress::Step("collecting the result"));
        let staged = work.join("result");
        remove(&staged)?;
        make_directory(&staged)?;
        make.collect(&staged)?;
        make_directory(result.parent().unwrap_or(result))?;
        fs::rename(&staged, result).map_err(BuildError::io("keeping the result in", result))?;
        progress(Progress::Step("removing the build tree"));
        remove(&tree)
    }

    fn install(
        &self,
        store: &KernelStore,
        source: &Source,
        recipe: Recipe,
        result: &Path,
    ) -> Result<StoredKernel, BuildError> {
        let kernel = result.join(crate::store::KERNEL_FILE);
        let image = inspect_file(&kernel, Detail::Version)?;
        let companions = [BZIMAGE_FILE, CONFIG_FILE]
            .map(|name| (name, result.join(name)))
            .into_iter()
            .filter(|(_, path)| path.exists())
            .collect();
        let new = NewKernel {
            file: &kernel,
            image,
            source: source.description(),
            recipe: Some(recipe.key),
            companions,
        };
        Ok(store.install(&self.name, &new)?)
    }
}

fn lock(directory: &Path) -> Result<File, BuildError> {
    make_directory(directory)?;
    let path = directory.join(".lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(BuildError::io("opening", &path))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|errno| BuildError::io("locking", &path)(errno.into()))?;
    Ok(file)
}

fn make_directory(path: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(path).map_err(BuildError::io("creating", path))
}

fn remove(path: &Path) -> Result<(), BuildError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(BuildError::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}
