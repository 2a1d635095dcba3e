//! The registers of a virtio-mmio window, used in any order.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capsa_virtio::testing::fuzz::mmio(bytes));
