//! The virtio-serial port to the outside.

use std::fs::{self, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::inotify;
use rustix::mount::{MountFlags, mount};

/// The port's device file, which the kernel makes some time after the driver was loaded.
pub(super) struct Arrival {
    device_changes: OwnedFd,
}

impl Arrival {
    /// Mounts `/dev` and watches it. The kernel has no other place for it.
    pub(super) fn watch() -> Result<Self> {
        mount(
            "devtmpfs",
            "/dev",
            "devtmpfs",
            MountFlags::NOSUID,
            Some(c"mode=755"),
        )
        .context("cannot mount /dev")?;
        let device_changes = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(&device_changes, "/dev", inotify::WatchFlags::CREATE)?;
        Ok(Self { device_changes })
    }

    /// Waits until the port is there, and opens it. The device number of its bus is the kernel's to choose.
    pub(super) fn open(self) -> Result<File> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut changes = inotify::Reader::new(&self.device_changes, &mut buffer);
        loop {
            if let Some(path) = present()? {
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(&path)
                    .with_context(|| format!("cannot open {}", path.display()));
            }
            changes.next().context("cannot wait for the port")?;
        }
    }
}

fn present() -> Result<Option<PathBuf>> {
    for entry in fs::read_dir("/dev").context("cannot list /dev")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vport") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
