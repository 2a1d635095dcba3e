//! The file systems of the lab: the host's root through virtio-fs, and what each machine has for itself.

use std::env;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount, mount_move};

use super::super::{initramfs, machine};

/// On the tmpfs of `/run`: faster than the share, and with everything that a local file system can do.
pub(super) const TEMPORARY: &str = "/run/tmp";

/// Makes the host's root file system this machine's own.
pub(super) fn enter_host_root() -> Result<()> {
    let host = Path::new(initramfs::HOST);
    mount(machine::SHARE, host, "virtiofs", MountFlags::empty(), None)
        .context("cannot mount the host's files")?;
    // The device file system is mounted before its socket may appear; it moves along.
    mount_move("/dev", host.join("dev")).context("cannot move /dev")?;
    env::set_current_dir(host).context("cannot enter the host's files")?;
    mount_move(".", "/").context("cannot make the host's files the root")?;
    rustix::process::chroot(".").context("cannot change the root")?;
    env::set_current_dir("/").context("cannot enter the root")?;

    let hidden = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    own("proc", "/proc", hidden, "")?;
    own("sysfs", "/sys", hidden, "")?;
    own("cgroup2", "/sys/fs/cgroup", hidden, "")?;
    own("tmpfs", "/run", plain, "mode=755")?;
    directory("/dev/pts", 0o755)?;
    own(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    )?;
    directory("/dev/shm", 0o1777)?;
    own("tmpfs", "/dev/shm", plain, "mode=1777")?;
    directory(TEMPORARY, 0o1777)?;
    own("tmpfs", TEMPORARY, plain, "mode=1777")?;
    for (link, target) in [
        ("fd", "fd"),
        ("stdin", "fd/0"),
        ("stdout", "fd/1"),
        ("stderr", "fd/2"),
    ] {
        symlink(
            Path::new("/proc/self").join(target),
            Path::new("/dev").join(link),
        )
        .with_context(|| format!("cannot make /dev/{link}"))?;
    }
    Ok(())
}

fn own(kind: &str, place: &str, flags: MountFlags, options: &str) -> Result<()> {
    let options = std::ffi::CString::new(options)?;
    mount(kind, place, kind, flags, Some(options.as_c_str()))
        .with_context(|| format!("cannot mount {kind} on {place}"))
}

fn directory(place: &str, mode: u32) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(place)
        .with_context(|| format!("cannot make {place}"))
}
