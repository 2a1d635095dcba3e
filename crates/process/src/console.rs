//! The console's way between the child that runs the VM and the caller.
//!
//! A task of the runtime takes what the guest writes from the child's sockets, looks through it for
//! a kernel panic, and hands it on. Order at the end of a VM: when the child is gone, everything
//! that it wrote is taken from the sockets first; then the VM's end is reported; the reader sees
//! every byte and then the end of the output. A reader that stops reading holds the guest's console
//! up, but not the report of the VM's end; a reader that is dropped holds nothing up.

mod panic_matcher;
mod relay;

pub use panic_matcher::{MAX_PANIC_MESSAGE_BYTES, PanicMatcher, PanicText};
pub use relay::{ConsolePorts, ConsoleRelay};
