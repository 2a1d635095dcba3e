//! A disk's queue, laid out by a hostile driver.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capsa_virtio::testing::fuzz::block(bytes));
