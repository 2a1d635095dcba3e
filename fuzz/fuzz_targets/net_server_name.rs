#![no_main]
//! See `capsa_net::fuzzing::server_name`.

libfuzzer_sys::fuzz_target!(|data: &[u8]| capsa_net::fuzzing::server_name(data));
