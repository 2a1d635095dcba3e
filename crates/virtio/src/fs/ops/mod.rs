//! The requests, by what they are about.

mod attributes;
mod data;
mod directories;
mod names;
mod open;
mod xattr;
