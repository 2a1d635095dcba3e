//! Threads that wait for files: of disks, which are open, and of shared directories, in which files
//! are opened. Which files those can be is what the empty root and Landlock see to.

use capsa_process::confine::Policy;
use capsa_process::confine::lists::{
    DIRECTORIES, EVENT_LOOP, EVERY_THREAD, NO_BACKTRACE, NO_PATHS, OPEN_FILES,
};

use super::devices::INTERRUPTS;

/// Of a machine without shared directories.
pub(super) const OF_DISKS: Policy = Policy {
    thread: "disk",
    rules: &[
        EVERY_THREAD,
        NO_BACKTRACE,
        EVENT_LOOP,
        INTERRUPTS,
        OPEN_FILES,
    ],
};

/// Of a machine with shared directories.
pub(super) const OF_SHARES: Policy = Policy {
    thread: "file",
    // Calls with a path of the process's own, which the allocator tries, look missing.
    rules: &[
        EVERY_THREAD,
        NO_PATHS,
        EVENT_LOOP,
        INTERRUPTS,
        OPEN_FILES,
        DIRECTORIES,
    ],
};
