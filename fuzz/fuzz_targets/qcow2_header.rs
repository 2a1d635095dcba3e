//! The header of a disk image.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capsa_virtio::testing::fuzz::qcow2_header(bytes));
