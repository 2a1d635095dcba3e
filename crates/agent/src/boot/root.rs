//! Going from the initramfs to the guest's root file system.
//!
//! The initramfs cannot be unmounted: the new root is moved over it, and the agent goes on from memory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use capsa_agent_protocol::boot::{MountSource, RootChanges, RootConfig};
use capsa_agent_protocol::{ByteString, Failure, FailureKind};
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{chdir, chroot};

use super::{Warnings, failed, mount};

/// Where it is put together, in the initramfs.
const PLACE: &str = "/capsa";
/// What goes along into the new root, and the mode of a place for it.
const KEPT: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("sys", 0o555),
    ("run", 0o755),
    ("tmp", 0o1777),
];
/// Only the initramfs needs it: it is most of its memory.
const BUSYBOX: &str = "/bin/busybox";

pub(super) fn enter(config: &RootConfig, warnings: &mut Warnings) -> Result<(), Failure> {
    if !crate::serve::is_init() {
        let text = "a guest that has booted by itself keeps its root file system";
        return Err(Failure::new(FailureKind::Invalid, text));
    }
    let root = Path::new(PLACE).join("root");
    make_directory(&root)?;
    put_together(config, &root)?;
    for (name, mode) in KEPT {
        let place = root.join(name);
        if let Err(error) = keep(&Path::new("/").join(name), &place, mode) {
            warnings.add(format!("/{name} cannot go into the root: {error}"));
        }
    }
    let _ = fs::remove_file(BUSYBOX);
    switch(&root).map_err(failed("cannot make the new root file system the root"))?;
    for mask in &config.masks {
        if let Err(error) = hide(mask) {
            warnings.add(format!("cannot hide {}: {error}", mask.display()));
        }
    }
    Ok(())
}

fn put_together(config: &RootConfig, root: &Path) -> Result<(), Failure> {
    let upper = match (&config.changes, config.layers.as_slice()) {
        (_, []) => {
            let text = "a root file system without layers";
            return Err(Failure::new(FailureKind::Invalid, text));
        }
        (RootChanges::Written, [layer]) => return mount::mount_at(layer, root, false, ""),
        (RootChanges::Written, _) => {
            let text = "only a root file system of one layer can be written";
            return Err(Failure::new(FailureKind::Invalid, text));
        }
        (RootChanges::Refused, [layer]) => return mount::mount_at(layer, root, true, ""),
        (RootChanges::Refused, _) => None,
        (RootChanges::ThrownAway { limit }, _) => Some(MountSource::Memory { limit: *limit }),
        (RootChanges::Kept(source), _) => Some(source.clone()),
    };
    let lower = config
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let place = Path::new(PLACE).join(index.to_string());
            make_directory(&place)?;
            mount::mount_at(layer, &place, true, "")?;
            Ok(place.display().to_string())
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let mut options = format!("lowerdir={}", lower.join(":"));
    if let Some(upper) = upper {
        let place = Path::new(PLACE).join("changes");
        make_directory(&place)?;
        mount::mount_at(&upper, &place, false, "")?;
        let [upper, work] = ["upper", "work"].map(|name| place.join(name));
        make_directory(&upper)?;
        make_directory(&work)?;
        // The root directory is that of the changes: it looks as the uppermost layer's.
        like_layer(&upper, lower.first());
        options.push_str(&format!(
            ",upperdir={},workdir={}",
            upper.display(),
            work.display()
        ));
    }
    let options = CString::new(options)
        .map_err(|_| Failure::new(FailureKind::Invalid, "a zero byte in a layer"))?;
    let flags = MountFlags::empty();
    mount("overlay", root, "overlay", flags, options.as_c_str())
        .map_err(io::Error::from)
        .map_err(failed("cannot lay the changes over the root file system"))
}

fn like_layer(upper: &Path, layer: Option<&String>) {
    if let Some(Ok(metadata)) = layer.map(fs::metadata) {
        // Not worth failing for.
        let _ = fs::set_permissions(upper, metadata.permissions());
    }
}

/// Moves what is mounted at `from` to `place`.
fn keep(from: &Path, place: &Path, mode: u32) -> io::Result<()> {
    // A link there could lead anywhere.
    match fs::symlink_metadata(place) {
        Ok(there) if there.is_dir() => {}
        Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
        Err(_) => {
            fs::create_dir(place)?;
            fs::set_permissions(place, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(mount_move(from, place)?)
}

fn switch(root: &Path) -> io::Result<()> {
    chdir(root)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// Lays something empty over it.
fn hide(path: &ByteString) -> io::Result<()> {
    let path = Path::new("/").join(path.as_path());
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        // There is nothing to be seen.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.is_dir() {
        return Ok(mount_bind("/dev/null", &path)?);
    }
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(mount("tmpfs", &path, "tmpfs", flags, c"size=4k,mode=0755")?)
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    let path = PathBuf::from(path);
    fs::create_dir_all(&path).map_err(failed(format!("cannot make {}", path.display())))
}
