//! The guest's side of `bench-devices`: each command uses a device once and prints the seconds that it took.
//!
//! Unsafe code is allowed here because requests to a disk, and sockets of the host's kind, are made by
//! bare system calls; see [`disk`] and [`stream`].
#![allow(unsafe_code)]

#[cfg(target_os = "linux")]
mod archive;
#[cfg(target_os = "linux")]
mod commands;
#[cfg(target_os = "linux")]
mod disk;
#[cfg(target_os = "linux")]
mod random;
#[cfg(target_os = "linux")]
mod share;
#[cfg(target_os = "linux")]
mod stream;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    use std::process::ExitCode;

    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match commands::run(&arguments) {
        Ok(Some(time)) => {
            println!("seconds={:.6}", time.as_secs_f64());
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-guest: {}: {error}", arguments.join(" "));
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("bench-guest runs in Linux guests only");
    std::process::ExitCode::FAILURE
}
