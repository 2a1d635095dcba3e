#![no_main]
//! See `capsa_net::fuzzing::packets`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzzing::packets(data));
