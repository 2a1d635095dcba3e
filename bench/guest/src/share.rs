//! Files of a share, mounted already.

use std::fs::File;
use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PIECE: usize = 1 << 20;

/// Unpacks the archive `file` into `directory`.
pub(crate) fn untar(file: &str, directory: &str) -> io::Result<Duration> {
    let began = Instant::now();
    let status = Command::new("/busybox")
        .args(["tar", "x", "-f", file, "-C", directory])
        .stdin(Stdio::null())
        .status()?;
    let time = began.elapsed();
    if status.success() {
        Ok(time)
    } else {
        Err(io::Error::other(format!("tar ended with {status}")))
    }
}

/// Reads `file` to its end.
pub(crate) fn read(file: &str) -> io::Result<Duration> {
    let mut file = File::open(file)?;
    let mut buffer = vec![0; PIECE];
    let began = Instant::now();
    while file.read(&mut buffer)? > 0 {}
    Ok(began.elapsed())
}
