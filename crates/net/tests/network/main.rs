//! The network with a real kernel as its guest, real programs on both sides.
#![cfg(target_os = "linux")]
#![allow(unreachable_pub, clippy::unwrap_used, clippy::panic)] // one test program of many files

mod addresses;
mod dns;
mod faults;
mod forwards;
mod lab;
mod peers;
mod policy;
mod programs;
mod tcp;
mod udp;
