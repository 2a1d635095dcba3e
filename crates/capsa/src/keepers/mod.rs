//! What things that outlive the process that made them have in common.
//!
//! Each has a *keeper*: this executable, started again, which holds the thing, serves a control
//! socket, and writes down what it does in a folder of the user's runtime directory. There is no other
//! process that knows of all of them.

mod birth;
mod clock;
pub(crate) mod frames;
pub(crate) mod name;
mod peer;
pub(crate) mod registry;
mod runtime_directory;
pub(crate) mod wire_error;

pub(crate) use birth::{Birth, begin, received};
pub(crate) use clock::now;
pub use name::MAX_NAME_BYTES;
pub(crate) use peer::is_ours;
pub use runtime_directory::DIRECTORY_VARIABLE;
