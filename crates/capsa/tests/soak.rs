//! What takes long: `cargo xtask soak` runs these; results are in docs/soak.md.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

mod support;

use std::fs;
use std::time::{Duration, Instant};

use capsa::test_utils::backend;
use capsa::{Capsa, Command, CommandInput, ExitStatus, ExtractOptions, Sandbox};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The size of what goes through a command and back; another with `CAPSA_SOAK_MIB`.
const STREAM_MIB: u64 = 10 * 1024;
/// Host memory that streaming may take, whatever is streamed.
const HOST_KIB: u64 = 64 * 1024;

async fn sandbox(memory_mib: u64) -> Sandbox {
    let builder = Capsa::sandbox().backend(backend().await.backend);
    builder.memory_mib(memory_mib).create().await.unwrap()
}

/// Resident memory of this process.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let number = line.unwrap().split_ascii_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

/// Bytes that repeat after no round number.
fn pattern() -> Vec<u8> {
    (0..1_000_003_u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn ten_gibibytes_through_a_command_and_back_stay_whole() {
    let mib = std::env::var("CAPSA_SOAK_MIB").map_or(STREAM_MIB, |text| text.parse().unwrap());
    let sandbox = sandbox(256).await;
    let before = resident_kib();
    let started = Instant::now();
    let mut child = sandbox
        .spawn(Command::new("cat").stdin(CommandInput::Piped))
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let total = mib << 20;

    let send = tokio::spawn(async move {
        let pattern = pattern();
        let mut left = total;
        while left > 0 {
            let piece = usize::try_from(left).unwrap().min(pattern.len());
            stdin.write_all(&pattern[..piece]).await.unwrap();
            left -= piece as u64;
        }
        stdin.shutdown().await.unwrap();
    });
    let expected = pattern();
    let (mut at, mut received, mut most) = (0, 0_u64, 0);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = stdout.read(&mut buffer).await.unwrap();
        if count == 0 {
            break;
        }
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let piece = rest.len().min(expected.len() - at);
            assert!(rest[..piece] == expected[at..at + piece], "at {received}");
            at = (at + piece) % expected.len();
            received += piece as u64;
            rest = &rest[piece..];
        }
        most = most.max(resident_kib());
    }
    send.await.unwrap();

    assert_eq!(received, total);
    assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(0));
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{mib} MiB each way in {seconds:.0} s ({:.0} MiB/s each way), {} KiB more memory",
        mib as f64 / seconds,
        most.saturating_sub(before)
    );
    assert!(
        most.saturating_sub(before) < HOST_KIB,
        "{before} to {most} KiB"
    );
}

#[tokio::test]
#[ignore = "takes fifteen minutes"]
async fn command_may_run_for_fifteen_minutes() {
    let sandbox = sandbox(128).await;
    let started = Instant::now();

    let output = sandbox.shell("sleep 900; echo done").await.unwrap();

    assert_eq!(output.stdout, b"done\n");
    assert!(started.elapsed() >= Duration::from_secs(899));
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn two_hundred_commands_of_mixed_sizes_at_once() {
    let sandbox = sandbox(1024).await;

    let commands = (0..200_usize).map(|number| {
        let sandbox = &sandbox;
        async move {
            let bytes = if number % 20 == 0 {
                10 << 20
            } else {
                number * 100
            };
            let script = format!("head -c {bytes} /dev/zero; exit {}", number % 100);
            let output = sandbox.shell(&script).await.unwrap();
            assert_eq!(output.stdout.len(), bytes, "{number}");
            assert_eq!(output.status.code(), i32::try_from(number % 100).ok());
        }
    });

    support::join_all(commands).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn tree_of_twenty_thousand_files_goes_in_and_comes_out() {
    let (source, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for directory in 0..200 {
        let directory = source.path().join(format!("d{directory}"));
        fs::create_dir(&directory).unwrap();
        for file in 0..100 {
            fs::write(directory.join(format!("f{file}")), vec![1; file * 37]).unwrap();
        }
    }
    support::odd_tree(&source.path().join("d0"));
    let sandbox = sandbox(1024).await;
    let options = ExtractOptions {
        keep_set_id: true,
        ..ExtractOptions::default()
    };
    let started = Instant::now();

    let files = sandbox.files();
    files
        .copy_in(source.path(), "/tmp/tree", options)
        .await
        .unwrap();
    let into = started.elapsed();
    files
        .copy_out("/tmp/tree", back.path().join("tree"), options)
        .await
        .unwrap();

    println!(
        "20,000 files: in {:.1} s, out {:.1} s",
        into.as_secs_f64(),
        (started.elapsed() - into).as_secs_f64()
    );
    support::assert_same_tree(source.path(), &back.path().join("tree"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn monitor_suspended_for_a_minute_goes_on_with_the_right_time() {
    let sandbox = sandbox(128).await;
    let mut child = sandbox
        .spawn(Command::new("cat").stdin(CommandInput::Piped))
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let monitor = sandbox.vm().unwrap().process_id().unwrap();
    let monitor = Pid::from_raw(monitor.cast_signed()).unwrap();

    kill_process(monitor, Signal::STOP).unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    kill_process(monitor, Signal::CONT).unwrap();
    stdin.write_all(b"after").await.unwrap();
    let mut echoed = [0; 5];
    stdout.read_exact(&mut echoed).await.unwrap();
    let guest = sandbox.shell("date +%s").await.unwrap();
    let host = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();

    assert_eq!(&echoed, b"after");
    let guest: u64 = String::from_utf8(guest.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    println!(
        "the guest's clock is {} s behind",
        host.saturating_sub(guest)
    );
    assert!(host.abs_diff(guest) <= 2, "{guest}, and on the host {host}");
}
