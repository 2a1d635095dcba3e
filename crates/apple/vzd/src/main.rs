//! The daemon. Started by the library, with the control socket as standard input.

use std::process::ExitCode;

#[cfg(target_os = "macos")]
fn main() -> ExitCode {
    capsa_apple_vzd::run(capsa_apple_vz::VzEngine::new())
}

#[cfg(not(target_os = "macos"))]
fn main() -> ExitCode {
    eprintln!("capsa-vzd: this program runs on macOS only");
    ExitCode::FAILURE
}
