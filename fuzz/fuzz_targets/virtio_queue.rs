//! A queue by itself, with rings of any content.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capsa_virtio::testing::fuzz::queue(bytes));
