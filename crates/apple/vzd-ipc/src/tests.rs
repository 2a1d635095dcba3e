//! The protocol as both of its ends see it.

mod protocol;
