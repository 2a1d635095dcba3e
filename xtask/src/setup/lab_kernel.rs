//! The lab's own kernel: Debian's kernel for cloud machines, unpacked from its package and not installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{packages, progress};
use crate::cache;

/// Depends on the newest kernel of its kind.
const NEWEST: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
#[cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "the lab reads it")
)]
pub(crate) struct LabKernel {
    /// The bzImage.
    pub(crate) image: PathBuf,
    /// The directory with its modules.
    pub(crate) modules: PathBuf,
}

/// Names a folder with another kernel to use: `boot/vmlinuz-VERSION` and `lib/modules/VERSION` in it.
const VARIABLE: &str = "CAPSA_LAB_KERNEL";

/// The kernel that an earlier set-up unpacked, or that the user named.
pub(crate) fn installed() -> Result<Option<LabKernel>> {
    if let Some(named) = env::var_os(VARIABLE) {
        let kernel = in_directory(Path::new(&named))?;
        return kernel
            .with_context(|| {
                format!(
                    "{VARIABLE} is {}, where there is no boot/vmlinuz-VERSION with its lib/modules",
                    named.display()
                )
            })
            .map(Some);
    }
    in_directory(&directory()?)
}

/// The kernel, fetched where it is missing.
pub(crate) fn ensure() -> Result<LabKernel> {
    let place = directory()?;
    if let Some(kernel) = in_directory(&place)? {
        return Ok(kernel);
    }
    if packages::candidate(NEWEST).is_none() {
        if !packages::is_root() {
            bail!("apt does not know {NEWEST}; type:\n  sudo apt-get update");
        }
        packages::update_lists()?;
    }
    let package = newest_package()?;
    let step = progress::step(format!("fetching the lab's kernel {package}"));
    let parent = place
        .parent()
        .context("the cache has no parent directory")?;
    let work = tempfile::Builder::new()
        .prefix("lab-kernel-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    download(&package, work.path())?;
    unpack(work.path())?;
    step.finish();
    if place.exists() {
        // Without a kernel in it, or we would not be here.
        fs::remove_dir_all(&place).with_context(|| format!("cannot remove {}", place.display()))?;
    }
    let unpacked = work.path().join("unpacked");
    fs::rename(&unpacked, &place)
        .with_context(|| format!("cannot move the kernel to {}", place.display()))?;
    in_directory(&place)?.with_context(|| format!("the package {package} has no kernel in it"))
}

fn directory() -> Result<PathBuf> {
    Ok(cache::directory()?.join("lab-kernel"))
}

fn in_directory(place: &Path) -> Result<Option<LabKernel>> {
    let (boot, modules) = (place.join("boot"), place.join("lib/modules"));
    if !boot.is_dir() || !modules.is_dir() {
        return Ok(None);
    }
    let image = only_entry(&boot, "vmlinuz-")?;
    let modules = only_entry(&modules, "")?;
    Ok(image
        .zip(modules)
        .map(|(image, modules)| LabKernel { image, modules }))
}

fn only_entry(directory: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?
    {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// The package with the kernel itself, which the newest one's package depends on.
fn newest_package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", NEWEST])
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends:"))
        .map(str::trim)
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| {
            format!("apt does not say which kernel {NEWEST} stands for: try `apt-get update`")
        })
}

fn download(package: &str, into: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["--quiet=2", "-o", "Acquire::Retries=3"]);
    if packages::is_root() {
        // apt's own user may not write to our directory.
        command.args(["-o", "APT::Sandbox::User=root"]);
    }
    packages::run(command.args(["download", package]).current_dir(into))
        .with_context(|| format!("cannot fetch the package {package}"))
}

fn unpack(directory: &Path) -> Result<()> {
    let archive = fs::read_dir(directory)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get fetched no package")?;
    packages::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(archive)
            .arg(directory.join("unpacked")),
    )
    .context("cannot unpack the lab's kernel")
}
