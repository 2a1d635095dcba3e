//! A share's queues and FUSE messages, from a hostile driver.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capsa_virtio::testing::fuzz::fs(bytes));
