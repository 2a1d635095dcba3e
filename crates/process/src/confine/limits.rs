use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No core dump, which would hold the guest's memory; as many open files as the host allows, and no way to raise a limit
/// again.
pub(super) fn lower() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // Neither message queues nor locked memory are of use to it.
    setrlimit(Resource::Msgqueue, none)?;
    // Each file of a share that the guest knows takes a descriptor, and the usual limit is 1024.
    for (resource, raised) in [(Resource::Nofile, true), (Resource::Sigpending, false)] {
        let now = getrlimit(resource);
        let limit = if raised { now.maximum } else { now.current };
        setrlimit(
            resource,
            Rlimit {
                current: limit,
                maximum: limit,
            },
        )?;
    }
    Ok(())
}
