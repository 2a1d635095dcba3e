use std::io;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

/// Where the empty file system is mounted for a moment.
const PLACE: &str = "/proc";

/// Replaces the root file system by an empty one that cannot be written.
pub(super) fn replace() -> io::Result<()> {
    // Nothing of what follows is to be seen outside.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(
        "none",
        PLACE,
        "tmpfs",
        flags,
        c"size=4k,nr_inodes=1,mode=555",
    )?;
    chdir(PLACE)?;
    // Puts the old root on top of the new one, from where it is taken away.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    mount_remount("/", flags | MountFlags::RDONLY, c"")?;
    Ok(())
}
