//! Telling the user that something went wrong in the guest.

use std::fmt::Display;

/// Writes `what` to the console; there is nobody else to tell.
pub(crate) fn problem(what: impl Display) {
    // Raw consoles do not turn a line feed into a new line by themselves.
    eprint!("capsa-init: {what}\r\n");
}
