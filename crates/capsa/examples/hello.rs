//! Boots the default guest, has it answer, and shuts it down:
//! `cargo run --package capsa --example hello`.

use std::time::Duration;

use capsa::{Capsa, LinuxBootConfig};

#[tokio::main(flavor = "current_thread")]
async fn main() -> capsa::Result<()> {
    let vm = Capsa::vm(LinuxBootConfig::new())
        .name("hello")
        .memory_mib(256)
        .start()
        .await?;
    for warning in vm.warnings() {
        eprintln!("warning: {warning}");
    }

    let mut console = vm.console()?;
    console.wait_for("# ", Duration::from_secs(60)).await?;
    console.write_line("uname -a").await?;
    console.wait_for("\n", Duration::from_secs(10)).await?; // the echo of what was typed
    let answer = console.wait_for("\n", Duration::from_secs(10)).await?;
    print!("{}", String::from_utf8_lossy(&answer));

    console.write_line("poweroff -f").await?;
    println!("{}", vm.wait().await);
    Ok(())
}
