//! Much through vsock, and through many connections: `cargo xtask soak --program soak_vsock`; results
//! are in docs/soak.md.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

mod support;

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use capsa::test_utils::{self, LIMIT, Shell};
use capsa::{DiskAccess, DiskFormat, DiskSpec, VsockSpec, VsockStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// The size of what goes each way; another with `CAPSA_SOAK_MIB`.
const MIB: u64 = 4096;
/// Connections at once.
const CONNECTIONS: usize = 1000;
const PIECE: usize = 1 << 16;
/// Ends what hangs; the lab's guests are slow.
const LONG: Duration = Duration::from_secs(60 * 60);

async fn shell(memory_mib: u64, disk: Option<DiskSpec>) -> Shell {
    let mut builder = test_utils::vm().await.memory_mib(memory_mib);
    if let Some(disk) = disk {
        builder = builder.disk(disk);
    }
    Shell::start(builder.vsock(VsockSpec::default())).await
}

/// Has `program` answer on a port of the guest; on return it listens.
async fn serve(shell: &mut Shell, port: u32, program: &str) {
    shell
        .run(&format!(
            "mkfifo /tmp/fifo{port} && {{ vsock listen {port} {program} > /tmp/fifo{port} & }} && \
             read line < /tmp/fifo{port} && test \"$line\" = listening"
        ))
        .await;
}

/// The host's own md5sum, fed by hand.
fn md5sum() -> Child {
    let mut command = Command::new("md5sum");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    piped.spawn().unwrap()
}

fn sum_of(mut child: Child) -> String {
    drop(child.stdin.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let output = String::from_utf8(output.stdout).unwrap();
    output.split_whitespace().next().unwrap().to_owned()
}

/// No piece is like another, so that none can be lost, doubled or out of order in silence.
fn fill(piece: &mut [u8], mut at: u64) {
    for word in piece.chunks_exact_mut(8) {
        let mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&(mixed ^ (mixed >> 29)).to_le_bytes());
        at += 8;
    }
}

async fn send(mut stream: VsockStream, total: u64) -> (String, VsockStream) {
    let mut sum = md5sum();
    let mut piece = vec![0; PIECE];
    for at in (0..total).step_by(PIECE) {
        fill(&mut piece, at);
        sum.stdin.as_mut().unwrap().write_all(&piece).unwrap();
        stream.write_all(&piece).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    (sum_of(sum), stream)
}

async fn receive(mut stream: VsockStream) -> (String, u64) {
    let mut sum = md5sum();
    let mut piece = vec![0; PIECE];
    let mut total = 0;
    loop {
        let count = stream.read(&mut piece).await.unwrap();
        if count == 0 {
            break;
        }
        let known = &piece[..count];
        sum.stdin.as_mut().unwrap().write_all(known).unwrap();
        total += count as u64;
    }
    (sum_of(sum), total)
}

fn tell(direction: &str, total: u64, begun: Instant) {
    let (mib, seconds) = (total >> 20, begun.elapsed().as_secs_f64());
    println!(
        "{mib} MiB {direction} in {seconds:.0} s ({:.1} MiB/s)",
        mib as f64 / seconds
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn four_gibibytes_each_way_have_the_same_sum_on_both_sides() {
    let mib = std::env::var("CAPSA_SOAK_MIB").map_or(MIB, |text| text.parse().unwrap());
    let total = mib << 20;
    // The guest sends what is on its disk, which is what it is sent.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut piece = vec![0; PIECE];
    for at in (0..total).step_by(PIECE) {
        fill(&mut piece, at);
        file.write_all(&piece).unwrap();
    }
    let disk = DiskSpec {
        format: Some(DiskFormat::Raw),
        access: DiskAccess::ReadOnly,
        ..DiskSpec::new(file.path())
    };
    let mut shell = shell(256, Some(disk)).await;

    serve(&mut shell, 6000, "md5sum").await;
    let begun = Instant::now();
    let stream = shell.vm.vsock_connect(6000).await.unwrap();
    let (sent, mut stream) = timeout(LONG, send(stream, total)).await.unwrap();
    let mut arrived = String::new();
    let answer = stream.read_to_string(&mut arrived);
    timeout(LONG, answer).await.unwrap().unwrap();
    tell("into the guest", total, begun);

    let mut listener = shell.vm.vsock_listen(5000).await.unwrap();
    let begun = Instant::now();
    let guest = shell.run_within(LONG, "vsock connect 5000 < /dev/vda");
    let host = async {
        let stream = listener.accept().await.unwrap();
        timeout(LONG, receive(stream)).await.unwrap()
    };
    let (_, (left, count)) = tokio::join!(guest, host);
    tell("out of the guest", total, begun);

    assert_eq!(arrived.split_whitespace().next(), Some(sent.as_str()));
    assert_eq!(count, total);
    assert_eq!(left, sent);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_thousand_connections_at_once_from_the_host_keep_their_bytes_apart() {
    let mut shell = shell(1024, None).await;
    serve(&mut shell, 6000, "cat").await;
    let begun = Instant::now();

    // All are there before the first is used.
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let connecting = shell.vm.vsock_connect(6000);
        streams.push(timeout(LIMIT, connecting).await.unwrap().unwrap());
    }
    let connected = begun.elapsed();
    let each = streams
        .into_iter()
        .enumerate()
        .map(|(number, mut stream)| async move {
            let sent = format!("{number}\n").repeat(1000).into_bytes();
            stream.write_all(&sent).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut echoed = Vec::new();
            stream.read_to_end(&mut echoed).await.unwrap();
            assert!(echoed == sent, "{number}: {} bytes", echoed.len());
        });
    timeout(LONG, support::join_all(each)).await.unwrap();

    println!(
        "{CONNECTIONS} connections from the host in {:.0} s, echoed after {:.0} s",
        connected.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn a_thousand_connections_at_once_from_the_guest_keep_their_bytes_apart() {
    let mut shell = shell(1024, None).await;
    let mut listener = shell.vm.vsock_listen(5000).await.unwrap();
    let begun = Instant::now();
    shell
        .send(&format!(
            "mkdir /tmp/out; for n in $(seq {CONNECTIONS}); do \
             echo $n | vsock connect 5000 > /tmp/out/$n & done"
        ))
        .await;

    // None is answered before all are there.
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let accepted = timeout(LIMIT, listener.accept()).await;
        streams.push(accepted.unwrap().unwrap());
    }
    let connected = begun.elapsed();
    let each = streams.into_iter().map(|mut stream| async move {
        let mut asked = String::new();
        stream.read_to_string(&mut asked).await.unwrap();
        let answer = asked.repeat(100);
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    timeout(LONG, support::join_all(each)).await.unwrap();
    let right = shell
        .run_within(
            LONG,
            &format!(
                "wait; right=0; for n in $(seq {CONNECTIONS}); do \
                 test \"$(sort -u /tmp/out/$n)\" = $n && \
                 test $(wc -l < /tmp/out/$n) = 100 && right=$((right+1)); done; echo $right"
            ),
        )
        .await;

    assert!(right.ends_with(&CONNECTIONS.to_string()), "{right}");
    println!(
        "{CONNECTIONS} connections from the guest in {:.0} s, all answered after {:.0} s",
        connected.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
}
