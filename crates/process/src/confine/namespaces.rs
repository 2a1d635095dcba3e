use std::io;

use rustix::thread::UnshareFlags;

/// Leaves the caller's namespaces for new ones: mounts, network, IPC, host name, cgroups, and, where
/// `user`, users as well, which takes away every right outside of it.
///
/// There is none for processes: one thread of many cannot move, and what it would keep apart, signals
/// and `/proc`, is out of reach by the filters and the empty root.
pub(super) fn leave(user: bool) -> io::Result<()> {
    let (me, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let flags = UnshareFlags::NEWNS
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    if !user {
        return unshare(flags);
    }
    if let Err(error) = unshare(flags | UnshareFlags::NEWUSER) {
        // Root can do without that one: its rights are dropped in another way.
        return unshare(flags).map_err(|_| error);
    }
    // The same numbers inside as outside, and no other.
    std::fs::write("/proc/self/setgroups", "deny")?;
    let (me, group) = (me.as_raw(), group.as_raw());
    std::fs::write("/proc/self/uid_map", format!("{me} {me} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: descriptors stay shared, which is the flag that would break memory safety, and there
    // is one thread.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|error| {
        let hint = match error {
            rustix::io::Errno::PERM | rustix::io::Errno::NOSPC => {
                " (does the host allow user namespaces? See kernel.unprivileged_userns_clone, \
                 kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces)"
            }
            _ => "",
        };
        io::Error::other(format!("{}{hint}", io::Error::from(error)))
    })
}
