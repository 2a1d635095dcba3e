//! Mounting what the boot message names.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use capsa_agent_protocol::boot::{DiskName, MountConfig, MountSource};
use capsa_agent_protocol::{Failure, FailureKind};
use rustix::mount::{MountFlags, mount, mount_bind_recursive, mount_remount};

use super::failed;

/// Where the kernel lists the machine's disks.
const DISKS: &str = "/sys/block";

pub(super) fn mount_one(config: &MountConfig) -> Result<(), Failure> {
    let target = Path::new("/").join(config.target.as_path());
    let is_file = match &config.source {
        MountSource::Path(path) => path.as_path().is_file(),
        _ => false,
    };
    make_place(&target, is_file).map_err(failed(format!("cannot make {}", target.display())))?;
    mount_at(&config.source, &target, config.read_only, &config.options)
}

/// A directory, or a file for one to lie upon.
fn make_place(target: &Path, is_file: bool) -> io::Result<()> {
    if target.exists() {
        return Ok(());
    }
    if !is_file {
        return fs::create_dir_all(target);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::File::create(target).map(|_| ())
}

/// Mounts on a place that is there.
pub(super) fn mount_at(
    source: &MountSource,
    target: &Path,
    read_only: bool,
    options: &str,
) -> Result<(), Failure> {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, read_only);
    let text = |text: String| {
        CString::new(text).map_err(|_| Failure::new(FailureKind::Invalid, "a zero byte in a mount"))
    };
    let (name, mounted) = match source {
        MountSource::VirtioFs { tag } => {
            let options = text(options.to_owned())?;
            (
                format!("the share {tag}"),
                mount(tag.as_str(), target, "virtiofs", flags, options.as_c_str()),
            )
        }
        MountSource::Disk { disk, file_system } => {
            let device = device(disk)?;
            let options = text(options.to_owned())?;
            let kind = file_system.as_str();
            (
                format!("the disk {}", device.display()),
                mount(&device, target, kind, flags, options.as_c_str()),
            )
        }
        MountSource::Memory { limit } => {
            let mut all = vec![options.to_owned()];
            all.extend(limit.map(|limit| format!("size={limit}")));
            all.retain(|one| !one.is_empty());
            let options = text(all.join(","))?;
            (
                "memory".to_owned(),
                mount("tmpfs", target, "tmpfs", flags, options.as_c_str()),
            )
        }
        MountSource::Path(path) => {
            let bound = mount_bind_recursive(path.as_path(), target).and_then(|()| {
                if read_only {
                    mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"")
                } else {
                    Ok(())
                }
            });
            (path.display().to_string(), bound)
        }
    };
    mounted.map_err(io::Error::from).map_err(failed(format!(
        "cannot mount {name} on {}",
        target.display()
    )))
}

/// The device of a disk.
fn device(disk: &DiskName) -> Result<PathBuf, Failure> {
    let name = match disk {
        DiskName::Index(index) => Some(format!("vd{}", letters(*index))),
        DiskName::Serial(serial) => by_serial(serial),
    };
    let missing = || {
        let text = match disk {
            DiskName::Index(index) => format!("the machine has no disk {index}"),
            DiskName::Serial(serial) => format!("the machine has no disk with serial {serial}"),
        };
        Failure::new(FailureKind::Invalid, text)
    };
    name.map(|name| Path::new("/dev").join(name))
        .filter(|device| device.exists())
        .ok_or_else(missing)
}

fn by_serial(serial: &str) -> Option<String> {
    let disks = fs::read_dir(DISKS).ok()?.flatten();
    let mut names = disks.filter_map(|disk| disk.file_name().into_string().ok());
    names.find(|name| {
        let path = Path::new(DISKS).join(name).join("serial");
        fs::read_to_string(path).is_ok_and(|found| found.trim() == serial)
    })
}

/// The kernel's names: a to z, then aa and so on.
fn letters(index: u16) -> String {
    let mut rest = u32::from(index) + 1;
    let mut letters = Vec::new();
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    letters.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_the_kernel_names_them() {
        let names = [0, 25, 26, 51, 52, 701, 702].map(letters);
        assert_eq!(names, ["a", "z", "aa", "az", "ba", "zz", "aaa"]);
    }
}
