//! How many connections there are at once.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// More wait until one ends.
const MAX_CONNECTIONS: usize = 2048;
/// After so long another connection is tried, where descriptors or memory were short.
const RETRY: Duration = Duration::from_secs(1);

static TAKEN: Mutex<usize> = Mutex::new(0);
static RELEASED: Condvar = Condvar::new();

/// The right to serve one connection; dropping it gives it back.
pub(crate) struct Slot(());

/// Waits for one.
pub(super) fn take() -> Slot {
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut taken = RELEASED
        .wait_while(taken, |taken| *taken >= MAX_CONNECTIONS)
        .unwrap_or_else(PoisonError::into_inner);
    *taken += 1;
    Slot(())
}

/// Waits until a connection ends, but not long: what is short may also come back from elsewhere.
pub(super) fn wait_for_release() {
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    drop(
        RELEASED
            .wait_timeout(taken, RETRY)
            .unwrap_or_else(PoisonError::into_inner),
    );
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(1);
        RELEASED.notify_all();
    }
}
