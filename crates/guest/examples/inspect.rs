//! Tells what kernel files are: `cargo run -p capsa-guest --example inspect -- FILE…`.

use std::path::Path;
use std::process::ExitCode;

use capsa_guest::inspect::{Detail, inspect_file};

fn main() -> ExitCode {
    let mut all_sound = true;
    for argument in std::env::args_os().skip(1) {
        let path = Path::new(&argument);
        match inspect_file(path, Detail::Version) {
            Ok(image) => println!("{}: {image}", path.display()),
            Err(error) => {
                all_sound = false;
                println!("{error}");
            }
        }
    }
    if all_sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
