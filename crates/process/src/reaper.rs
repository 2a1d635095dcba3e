//! The last resort for children whose supervisor went away before they ended: a runtime that shut
//! down. One thread for all of them, there only while there is something to reap.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::sys::Process;

#[derive(Default)]
struct Orphans {
    waiting: Vec<Arc<Process>>,
    has_thread: bool,
}

static ORPHANS: Mutex<Orphans> = Mutex::new(Orphans {
    waiting: Vec::new(),
    has_thread: false,
});

/// Reaps a child that was sent `SIGKILL`, off this thread.
pub(crate) fn reap_later(process: Arc<Process>) {
    let mut orphans = ORPHANS.lock().unwrap_or_else(PoisonError::into_inner);
    orphans.waiting.push(process);
    if !orphans.has_thread {
        let thread = thread::Builder::new()
            .name("capsa-reaper".to_owned())
            .stack_size(64 << 10)
            .spawn(reap_all);
        // Without a thread they stay until the next orphan comes; they are dead all the same.
        orphans.has_thread = thread.is_ok();
    }
}

fn reap_all() {
    loop {
        let process = {
            let mut orphans = ORPHANS.lock().unwrap_or_else(PoisonError::into_inner);
            match orphans.waiting.pop() {
                Some(process) => process,
                None => {
                    orphans.has_thread = false;
                    return;
                }
            }
        };
        process.reap_blocking();
    }
}
