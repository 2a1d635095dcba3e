//! The disk that the tests of UEFI boot: systemd-boot, which starts Debian's kernel for cloud machines, whose init is a
//! shell on the serial port.
//!
//! All of it comes from Debian's packages, and is put together by mtools, so that nothing has to be mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{BOOT_LOADER, LabKernel, packages, progress, tools};
use crate::cache;
use crate::lab::{Archive, ModuleTree};

/// Changes with everything that is written below, so that an older disk is made anew.
const VERSION: u32 = 1;
const DISK_MIB: u64 = 64;
const MODULES: &[&str] = &["button", "efivarfs", "virtio_pci", "virtio_blk"];

const LOADER: &str = "default linux.conf\ntimeout 0\n";
const ENTRY: &str =
    "title Linux\nlinux /vmlinuz\ninitrd /initrd\noptions console=ttyS0 quiet panic=-1\n";

const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin
for module in /modules/*; do insmod $module; done
mount -t efivarfs efivarfs /sys/firmware/efi/efivars
stty -echo < /dev/ttyS0
echo ready-for-tests
while :; do sh < /dev/ttyS0; done
"#;

/// The disk, made where it is missing or older than what it is made from.
pub(crate) fn ensure(kernel: &LabKernel) -> Result<PathBuf> {
    let path = cache::directory()?.join("uefi-test.img");
    let recipe = path.with_extension("recipe");
    let wanted = format!("{VERSION} {}", kernel.image.display());
    let present = fs::read_to_string(&recipe).is_ok_and(|made| made == wanted);
    if present && path.exists() {
        return Ok(path);
    }
    let _lock = cache::lock("uefi-image")?;
    let step = progress::step("making the disk for the tests of UEFI");
    make(kernel, &path).context("cannot make the disk for the tests of UEFI")?;
    fs::write(&recipe, wanted).with_context(|| format!("cannot write {}", recipe.display()))?;
    step.finish();
    Ok(path)
}

fn make(kernel: &LabKernel, path: &Path) -> Result<()> {
    let parent = path.parent().context("the cache has no parent")?;
    let work = tempfile::tempdir_in(parent)?;
    let root = work.path().join("root");
    let put = |name: &str, content: &[u8]| -> Result<()> {
        let path = root.join(name);
        fs::create_dir_all(path.parent().context("no parent")?)?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    put("EFI/BOOT/BOOTX64.EFI", &read(Path::new(BOOT_LOADER))?)?;
    put("loader/loader.conf", LOADER.as_bytes())?;
    put("loader/entries/linux.conf", ENTRY.as_bytes())?;
    put("vmlinuz", &read(&kernel.image)?)?;
    put("initrd", &initramfs(kernel)?)?;

    let disk = work.path().join("disk");
    fs::File::create(&disk)?.set_len(DISK_MIB << 20)?;
    packages::run(
        mtool("mformat")?
            .arg("-i")
            .arg(&disk)
            .args(["-F", "-v", "CAPSA", "::"]),
    )?;
    let mut copy = mtool("mcopy")?;
    copy.arg("-i").arg(&disk).args(["-s", "-Q"]);
    for name in ["EFI", "loader", "vmlinuz", "initrd"] {
        copy.arg(root.join(name));
    }
    packages::run(copy.arg("::"))?;
    fs::rename(&disk, path).with_context(|| format!("cannot put it at {}", path.display()))
}

fn initramfs(kernel: &LabKernel) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    archive.file(Path::new("/init"), INIT.as_bytes())?;
    let busybox = read(Path::new(capsa_guest::initramfs::BUSYBOX))?;
    archive.file(Path::new("/bin/busybox"), &busybox)?;
    archive.character_device(Path::new("/dev/console"), 5, 1)?;
    let modules = ModuleTree::open(&kernel.modules)?.in_load_order(MODULES)?;
    for (index, module) in modules.iter().enumerate() {
        let name = format!("/modules/{index:02}-{}.ko", module.name);
        archive.file(Path::new(&name), &module.content)?;
    }
    archive.finish()
}

fn mtool(name: &str) -> Result<Command> {
    let program =
        tools::find(name).with_context(|| format!("{name} is missing: install mtools"))?;
    let mut command = Command::new(program);
    // The size is no floppy disk's, and that is fine.
    command.env("MTOOLS_SKIP_CHECK", "1");
    Ok(command)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
