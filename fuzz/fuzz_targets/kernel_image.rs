//! Any file at all can be named as a kernel.
#![no_main]

use std::io::Cursor;
use std::path::Path;

use capsa_guest::inspect::{Detail, inspect_reader};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    for detail in [Detail::Headers, Detail::Version] {
        match inspect_reader(&mut Cursor::new(content), Path::new("kernel"), detail) {
            Ok(image) => drop(image.to_string()),
            Err(error) => drop(error.to_string()),
        }
    }
});
