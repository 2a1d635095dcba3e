//! Gets what a fresh Debian 12 machine lacks: packages, the lab's kernel, the guest's pieces.
//!
//! Each part looks first whether it is there already, which takes milliseconds, and works only where it is not.

pub(crate) mod fuzzer;
mod lab_kernel;
mod packages;
mod progress;
pub(crate) mod tools;
#[cfg(target_os = "linux")]
mod uefi_image;

use anyhow::Result;

use crate::{cache, kernel};
pub(crate) use lab_kernel::LabKernel;
use packages::Package;

/// Debian's systemd-boot, as a program for UEFI.
const BOOT_LOADER: &str = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// Everything.
pub(crate) fn run() -> Result<()> {
    for_tests()?;
    progress::done("set-up is complete");
    Ok(())
}

/// What `capsa` needs to run a machine here.
pub(crate) fn for_running() -> Result<()> {
    ensure_packages(
        &[packages::FALLBACK, packages::GUEST],
        &kernel::missing_packages,
    )?;
    guest()
}

/// What the tests need, whichever backend they run on.
pub(crate) fn for_tests() -> Result<()> {
    // All in one go: packages of one source exclude those of another's version.
    let packages = [
        packages::FALLBACK,
        packages::GUEST,
        packages::LAB,
        lab_of_user(),
        packages::TESTS,
    ];
    ensure_packages(&packages, &kernel::missing_packages)?;
    guest()?;
    let kernel = lab()?;
    #[cfg(target_os = "linux")]
    uefi_image::ensure(&kernel)?;
    #[cfg(not(target_os = "linux"))]
    drop(kernel);
    Ok(())
}

/// What the soak tests need in addition: programs that machines run, or that load them.
#[cfg(target_os = "linux")]
pub(crate) fn for_soak_tests() -> Result<()> {
    for_tests()?;
    ensure_packages(&[packages::SOAK], &Vec::new)
}

/// The default kernel and initramfs.
fn guest() -> Result<()> {
    kernel::ensure_default()?;
    kernel::initramfs().map(drop)
}

/// What the lab needs. Says something only where there is something to do.
pub(crate) fn lab() -> Result<LabKernel> {
    ensure_packages(&[packages::LAB, lab_of_user()], &Vec::new)?;
    if let Some(kernel) = lab_kernel::installed()? {
        return Ok(kernel);
    }
    let _lock = cache::lock("setup")?;
    lab_kernel::ensure()
}

fn lab_of_user() -> &'static [Package] {
    if packages::is_root() {
        &[]
    } else {
        packages::LAB_OF_USER
    }
}

/// Installs what is missing of these packages, and of those that are `also` missing.
fn ensure_packages(wanted: &[&'static [Package]], also: &dyn Fn() -> Vec<String>) -> Result<()> {
    let missing = || {
        let mut missing = packages::missing(wanted.iter().copied().flatten());
        missing.extend(also());
        missing.sort();
        missing.dedup();
        missing
    };
    if missing().is_empty() {
        return Ok(());
    }
    let _lock = cache::lock("setup")?;
    // Another set-up may have been at it meanwhile, so this looks again.
    packages::install(&missing)
}
