use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// No core dump, which would hold the guest's memory; as many open files as the host allows; no way to raise a limit again.
pub(super) fn lower() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    // Neither message queues nor locked memory are of use to it.
    setrlimit(Resource::Msgqueue, none)?;
    raise_open_files()?;
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

/// Lets this process open as many files as the host allows. Each file of a share that the guest knows
/// takes a descriptor, and the usual limit is 1024.
///
/// # Errors
/// The host's own.
pub fn raise_open_files() -> io::Result<()> {
    let now = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: now.maximum,
        ..now
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}
