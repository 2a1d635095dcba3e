//! The file systems that every program expects.

use std::ffi::CStr;
use std::fs;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::parameters::ShareMount;
use crate::report;

struct Mount {
    kind: &'static str,
    place: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
}

const fn quiet(kind: &'static str, place: &'static str) -> Mount {
    Mount {
        kind,
        place,
        flags: MountFlags::NOSUID
            .union(MountFlags::NODEV)
            .union(MountFlags::NOEXEC),
        data: None,
    }
}

const fn writable(place: &'static str, data: &'static CStr) -> Mount {
    Mount {
        kind: "tmpfs",
        place,
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some(data),
    }
}

/// In order: a place may lie in one before it.
const MOUNTS: &[Mount] = &[
    quiet("proc", "/proc"),
    quiet("sysfs", "/sys"),
    quiet("cgroup2", "/sys/fs/cgroup"),
    Mount {
        kind: "devtmpfs",
        place: "/dev",
        flags: MountFlags::NOSUID,
        data: Some(c"mode=0755"),
    },
    Mount {
        kind: "devpts",
        place: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        // Group 5 is `tty` everywhere.
        data: Some(c"gid=5,mode=0620,ptmxmode=0666"),
    },
    writable("/dev/shm", c"mode=1777"),
    writable("/run", c"mode=0755"),
    writable("/tmp", c"mode=1777"),
];

/// Links that programs expect in `/dev`, which devtmpfs does not make.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts everything that is not there yet. What cannot be mounted is reported, and no reason to
/// stop: the guest may do without.
pub(crate) fn mount_all() {
    for Mount {
        kind,
        place,
        flags,
        data,
    } in MOUNTS
    {
        let made = fs::create_dir_all(place).map_err(|error| error.to_string());
        let mounted = made.and_then(|()| match mount(*kind, *place, *kind, *flags, *data) {
            // It is mounted there already.
            Ok(()) | Err(Errno::BUSY) => Ok(()),
            Err(error) => Err(error.to_string()),
        });
        if let Err(error) = mounted {
            report::problem(format_args!("cannot mount {kind} on {place}: {error}"));
        }
    }
    for (target, link) in LINKS {
        if fs::symlink_metadata(link).is_err()
            && let Err(error) = std::os::unix::fs::symlink(target, link)
        {
            report::problem(format_args!("cannot make {link}: {error}"));
        }
    }
}

/// Mounts shares of the host where the user wanted them. What cannot be mounted is reported.
pub(crate) fn mount_shares(shares: &[ShareMount]) {
    for ShareMount {
        tag,
        place,
        read_only,
    } in shares
    {
        let access = if *read_only {
            MountFlags::RDONLY
        } else {
            MountFlags::empty()
        };
        let made = fs::create_dir_all(place).map_err(|error| error.to_string());
        let mounted = made.and_then(|()| {
            let flags = MountFlags::NODEV | access;
            mount(tag, place, "virtiofs", flags, None).map_err(|error| error.to_string())
        });
        if let Err(error) = mounted {
            let (tag, place) = (tag.display(), place.display());
            report::problem(format_args!(
                "cannot mount the share {tag} on {place}: {error}"
            ));
        }
    }
}

/// Takes every file system off its device, or makes it read-only, so that none is left dirty.
pub(crate) fn release_all() {
    let table = match fs::read_to_string("/proc/self/mounts") {
        Ok(table) => table,
        Err(error) => return report::problem(format_args!("cannot read the mounts: {error}")),
    };
    for (device, place) in backed_by_devices(&table).rev() {
        let released = unmount(place.as_str(), UnmountFlags::empty())
            .or_else(|_| mount_remount(place.as_str(), MountFlags::RDONLY, c""));
        if let Err(error) = released {
            report::problem(format_args!(
                "{device} stays mounted on {place} at power-off: {error}"
            ));
        }
    }
}

/// Device and place of each mount whose device is a path.
fn backed_by_devices(table: &str) -> impl DoubleEndedIterator<Item = (&str, String)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.next().filter(|device| device.starts_with('/'))?;
        Some((device, unescape(fields.next()?)))
    })
}

/// The kernel writes blanks in paths as three octal digits.
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_devices_are_told_from_the_kernels_own() {
        let table =
            "proc /proc proc rw 0 0\n/dev/vda / ext4 rw 0 0\n/dev/vdb /my\\040data ext4 rw 0 0\n";

        let found: Vec<_> = backed_by_devices(table).collect();

        assert_eq!(
            found,
            [
                ("/dev/vda", "/".to_owned()),
                ("/dev/vdb", "/my data".to_owned())
            ]
        );
    }
}
