//! The console of real guests.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use capsa::test_utils::{self, LIMIT, Shell};
use capsa::{Capsa, ConsoleConfig, LinuxBootConfig, ReadFrom, VmExit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_prompt_without_a_newline_is_found() {
    let vm = Capsa::vm(LinuxBootConfig::new())
        .backend(test_utils::backend().await.backend)
        .isolation(test_utils::isolation())
        .start()
        .await
        .unwrap();
    let mut console = vm.console().unwrap();
    console.wait_for("# ", LIMIT).await.unwrap();
    // Once it answers, the shell has left the modes in which it edits its own line.
    console.write_line("echo $((20 + 1)); cat").await.unwrap();
    console.wait_for("\n21\r\n", LIMIT).await.unwrap();

    console.interrupt().await.unwrap();

    console.wait_for("# ", LIMIT).await.unwrap();
    console.write_line("echo $((40 + 2))").await.unwrap();
    console.wait_for("\n42\r\n", LIMIT).await.unwrap();
}

#[tokio::test]
async fn an_unread_console_does_not_hold_up_the_guest() {
    let builder = test_utils::vm()
        .await
        .console(ConsoleConfig::new().log_capacity(16 << 10));
    let mut shell = Shell::start(builder).await;
    // In one line: the kernel leaves the guest for each end of a line, which takes minutes in a busy lab.
    shell
        .send("head -c 400000 /dev/zero | tr '\\0' y; poweroff -f")
        .await;
    let exit = tokio::time::timeout(LIMIT, shell.vm.wait()).await.unwrap();
    assert_eq!(exit, VmExit::PoweredOff);
}

#[tokio::test]
async fn a_lossless_reader_gets_all_of_much_output() {
    let builder = test_utils::vm()
        .await
        .console(ConsoleConfig::new().log_capacity(16 << 10));
    let mut shell = Shell::start(builder).await;
    let mut reader = shell.console.lossless_reader(ReadFrom::Now);
    shell.send("seq 1 20000; poweroff -f").await;
    let mut output = String::new();
    reader.read_to_string(&mut output).await.unwrap();
    let output = output.replace('\r', "");
    let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert!(output.contains(&expected), "{} bytes", output.len());
}

#[tokio::test]
async fn much_input_arrives_whole_and_in_order() {
    let mut shell = Shell::start(test_utils::vm().await).await;
    let sent: Vec<u8> = (0..100 * 1024_u32)
        .map(|n| (n.wrapping_mul(n) / 251) as u8)
        .collect();
    shell
        .send(&format!(
            "echo ready; head -c {} > /tmp/in; cat /tmp/in",
            sent.len()
        ))
        .await;
    let (mut reader, mut writer) = shell.console.split();
    reader.wait_for("ready\n", LIMIT).await.unwrap();

    writer.write_all(&sent).await.unwrap();

    let mut received = vec![0; sent.len()];
    tokio::time::timeout(LIMIT, reader.read_exact(&mut received))
        .await
        .unwrap()
        .unwrap();
    assert!(received == sent);
}
