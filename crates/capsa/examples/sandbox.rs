//! Runs a command in a sandbox and reads a file back:
//! `cargo run --package capsa --example sandbox`.

use capsa::{Capsa, SandboxError};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), SandboxError> {
    let sandbox = Capsa::sandbox().create().await?;
    let output = sandbox.shell("uname -sr | tee /tmp/kernel; exit 3").await?;
    let file = sandbox.files().read("/tmp/kernel").await?;
    print!("{}", String::from_utf8_lossy(&file));
    println!("{}, {}", output.status, sandbox.timings());
    Ok(())
}
