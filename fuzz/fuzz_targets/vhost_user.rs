//! The messages of a hostile vhost-user front end.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| capsa_vhost_user::fuzz::messages(bytes));
