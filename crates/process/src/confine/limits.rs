use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No core dump, which would hold the guest's memory; and no way to raise a limit again.
pub(super) fn lower() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // Neither message queues nor locked memory are of use to it.
    setrlimit(Resource::Msgqueue, none)?;
    for resource in [Resource::Nofile, Resource::Sigpending] {
        let now = getrlimit(resource);
        setrlimit(
            resource,
            Rlimit {
                current: now.current,
                maximum: now.current,
            },
        )?;
    }
    Ok(())
}
