//! Sandboxes: commands, streams, files and root file systems, on the backend that
//! `CAPSA_TEST_BACKEND` names.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::time::Duration;

use capsa::test_utils::{LIMIT, backend, isolation};
use capsa::{
    AgentError, Capsa, Command, CommandInput, Error, ExitStatus, Rootfs, Sandbox, SandboxBuilder,
    SandboxError, ShareAccess, Terminal, VmExit, VmStatus,
};
use support::busybox_root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn builder() -> SandboxBuilder {
    Capsa::sandbox()
        .backend(backend().await.backend)
        .isolation(isolation())
        .memory_mib(256)
}

async fn create(builder: SandboxBuilder) -> Sandbox {
    tokio::time::timeout(LIMIT, builder.create())
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("{error}"))
}

async fn sandbox() -> Sandbox {
    create(builder().await).await
}

/// What a script writes to standard output; it must succeed.
async fn output_of(sandbox: &Sandbox, script: &str) -> String {
    let output = tokio::time::timeout(LIMIT, sandbox.shell(script))
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("{script}: {error}"));
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn command_gives_its_status_and_both_outputs() {
    let sandbox = sandbox().await;

    let output = sandbox
        .shell("echo out; echo err >&2; exit 7")
        .await
        .unwrap();
    assert_eq!(output.status, ExitStatus::Code(7));
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    for code in [0, 1, 126, 127, 128, 255] {
        let output = sandbox.shell(&format!("exit {code}")).await.unwrap();
        assert_eq!(output.status, ExitStatus::Code(code));
    }
    for number in [2, 9, 15] {
        let output = sandbox.shell(&format!("kill -{number} $$")).await.unwrap();
        assert_eq!(output.status.signal(), Some(number), "{output:?}");
    }
    let arguments = sandbox
        .exec(["printf", "[%s]", "two words", "*", "$HOME", ""])
        .await
        .unwrap();
    assert_eq!(arguments.stdout, b"[two words][*][$HOME][]");
    assert!(sandbox.timings().total() > Duration::ZERO);
}

#[tokio::test]
async fn command_that_cannot_run_is_a_typed_error_and_no_harm() {
    let sandbox = sandbox().await;

    let missing = sandbox.exec(["no-such-program"]).await.unwrap_err();
    assert!(matches!(
        missing,
        SandboxError::Agent(AgentError::CommandNotFound { .. })
    ));
    let no_program = sandbox.exec(["/etc/passwd"]).await.unwrap_err();
    assert_eq!(no_program.shell_code(), 126, "{no_program}");
    let long = Command::new("true").argument("x".repeat(1 << 20));
    let long = sandbox.exec(long).await.unwrap_err();
    assert!(
        matches!(
            long,
            SandboxError::Agent(AgentError::ArgumentsTooLong { .. })
        ),
        "{long}"
    );
    assert_eq!(output_of(&sandbox, "echo well").await, "well\n");
}

#[tokio::test]
async fn bytes_through_a_command_come_back_as_they_were() {
    let sandbox = sandbox().await;
    let sent: Vec<u8> = (0..3_000_000_u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut child = sandbox
        .spawn(Command::new("cat").stdin(CommandInput::Piped))
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut received = Vec::new();

    let send = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    tokio::join!(send, async {
        stdout.read_to_end(&mut received).await.unwrap();
    });

    assert!(received == sent, "{} bytes", received.len());
    assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(0));
}

#[tokio::test]
async fn fifty_commands_at_once_do_not_mix() {
    let sandbox = sandbox().await;

    let commands = (0..50).map(|number| {
        let sandbox = &sandbox;
        async move {
            let script = format!("yes {number} | head -n {}", 1000 + number);
            let output = sandbox.shell(&script).await.unwrap();
            let line = format!("{number}\n");
            assert_eq!(
                output.stdout,
                line.repeat(1000 + number).as_bytes(),
                "{number}"
            );
        }
    });

    support::join_all(commands).await;
}

#[tokio::test]
async fn commands_are_ended_and_left_behind_as_asked() {
    let sandbox = sandbox().await;

    // Killed while it writes.
    let mut child = sandbox.spawn(["yes"]).await.unwrap();
    let mut some = [0; 100_000];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut some).await.unwrap();
    child.kill();
    tokio::io::copy(&mut stdout, &mut tokio::io::sink())
        .await
        .unwrap();
    assert_eq!(child.wait().await.unwrap().signal(), Some(9));

    // A process that is left behind with the streams open.
    let output = sandbox.shell("sleep 1000 & echo started").await.unwrap();
    assert_eq!(output.stdout, b"started\n");

    // A slow reader holds up nobody else.
    let stuck = sandbox.spawn(["yes"]).await.unwrap();
    assert_eq!(output_of(&sandbox, "echo others").await, "others\n");
    drop(stuck);
}

#[tokio::test]
async fn terminal_has_its_size_and_follows_changes() {
    let sandbox = sandbox().await;
    let size = |rows, columns| Terminal { rows, columns };
    let script = "stty size; read line; stty size";

    let mut child = sandbox
        .pty(["sh", "-c", script], size(33, 101))
        .await
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = String::new();
    let mut byte = [0];
    while !shown.ends_with("33 101\r\n") {
        stdout.read_exact(&mut byte).await.unwrap();
        shown.push(char::from(byte[0]));
    }
    child.resize(size(50, 132));
    child.stdin.take().unwrap().write_all(b"\n").await.unwrap();
    stdout.read_to_string(&mut shown).await.unwrap();

    assert!(shown.ends_with("50 132\r\n"), "{shown:?}");
    assert_eq!(child.wait().await.unwrap(), ExitStatus::Code(0));
}

#[tokio::test]
async fn settings_reach_every_command() {
    let sandbox = create(
        builder()
            .await
            .name("named")
            .cpus(2)
            .env("GREETING", "hello")
            .workdir("/tmp")
            .user("65534:65534"),
    )
    .await;

    let seen = output_of(&sandbox, "echo $GREETING; pwd; id -u; nproc; hostname").await;
    assert_eq!(seen, "hello\n/tmp\n65534\n2\nnamed\n");
    let other = Command::new("sh")
        .arguments(["-c", "pwd; id -u"])
        .directory("/")
        .user("root");
    assert_eq!(sandbox.exec(other).await.unwrap().stdout, b"/\n0\n");
}

#[tokio::test]
async fn directory_is_root_beneath_a_layer_or_written_to() {
    let root = busybox_root();
    let script = "cat /etc/mark; echo new > /etc/mark; rm /etc/gone; echo $?; cat /etc/mark";
    fs::write(root.path().join("etc/mark"), "old\n").unwrap();
    fs::write(root.path().join("etc/gone"), "").unwrap();

    let layered = create(builder().await.rootfs(root.path())).await;
    assert_eq!(output_of(&layered, script).await, "old\n0\nnew\n");
    layered.kill().await.unwrap();
    assert_eq!(
        fs::read_to_string(root.path().join("etc/mark")).unwrap(),
        "old\n"
    );
    assert!(root.path().join("etc/gone").exists());

    let rootfs = Rootfs::directory(root.path()).writable();
    let written = create(builder().await.rootfs(rootfs)).await;
    assert_eq!(output_of(&written, script).await, "old\n0\nnew\n");
    let stopped = written.stop(LIMIT).await.unwrap();
    assert_eq!(stopped.exit, VmExit::PoweredOff);
    assert_eq!(
        fs::read_to_string(root.path().join("etc/mark")).unwrap(),
        "new\n"
    );
    assert!(!root.path().join("etc/gone").exists());
}

#[tokio::test]
async fn hosts_root_has_its_tools_and_not_its_secrets() {
    let sandbox = create(builder().await.rootfs(Rootfs::Host)).await;

    // A program of the host with its libraries.
    let tool = output_of(&sandbox, "/usr/bin/env true && echo runs").await;
    assert_eq!(tool, "runs\n");
    for path in ["/etc/shadow", "/root/.ssh", "/home/*", "/var/log/*"] {
        let seen = sandbox.shell(&format!("ls -d {path}")).await.unwrap();
        assert!(!seen.status.success(), "{path}: {seen:?}");
    }
    output_of(&sandbox, "echo changed > /etc/hostname-of-a-test").await;
    assert!(!fs::exists("/etc/hostname-of-a-test").unwrap());
}

#[tokio::test]
async fn shared_directories_are_where_and_as_asked() {
    let (source, target) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(source.path().join("in"), "from the host").unwrap();
    let sandbox = create(
        builder()
            .await
            .share(source.path(), "/source", ShareAccess::ReadOnly)
            .share(target.path(), "/deep/target", ShareAccess::ReadWrite),
    )
    .await;

    output_of(&sandbox, "cp /source/in /deep/target/out; sync").await;
    let refused = sandbox.shell("echo x > /source/in").await.unwrap();

    assert!(!refused.status.success());
    assert_eq!(
        fs::read_to_string(target.path().join("out")).unwrap(),
        "from the host"
    );
}

#[tokio::test]
async fn trees_go_in_and_come_out_as_they_were() {
    let (source, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    support::odd_tree(source.path());
    let sandbox = sandbox().await;
    let files = sandbox.files();
    let options = capsa::ExtractOptions {
        keep_set_id: true,
        ..capsa::ExtractOptions::default()
    };

    files
        .copy_in(source.path(), "/tmp/tree", options)
        .await
        .unwrap();
    files
        .copy_out("/tmp/tree", back.path().join("tree"), options)
        .await
        .unwrap();

    support::assert_same_tree(source.path(), &back.path().join("tree"));
    files.write("/tmp/note", b"by the host").await.unwrap();
    assert_eq!(output_of(&sandbox, "cat /tmp/note").await, "by the host");
    assert_eq!(files.read("/tmp/note").await.unwrap(), b"by the host");
    assert!(files.read("/tmp/none").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn guest_out_of_memory_loses_the_command_and_not_the_agent() {
    let sandbox = create(builder().await.memory_mib(128)).await;

    let output = sandbox.exec(["tail", "/dev/zero"]).await.unwrap();

    assert_eq!(output.status.signal(), Some(9), "{output:?}");
    assert_eq!(output_of(&sandbox, "echo alive").await, "alive\n");
}

#[tokio::test]
async fn guest_that_dies_is_a_typed_error_for_all_that_wait() {
    let sandbox = sandbox().await;
    let waiting = sandbox.spawn(["sleep", "1000"]).await.unwrap();

    let crash = sandbox.shell("echo c > /proc/sysrq-trigger; sleep 1000");
    let crash = tokio::time::timeout(LIMIT, crash).await.unwrap();
    let waited = tokio::time::timeout(LIMIT, waiting.wait()).await.unwrap();
    let exit = sandbox.wait().await.unwrap();
    let after = sandbox.exec(["true"]).await.unwrap_err();

    assert!(crash.is_err(), "{crash:?}");
    assert!(waited.is_err(), "{waited:?}");
    assert!(matches!(exit, VmExit::GuestPanic(_)), "{exit}");
    assert!(
        matches!(after, SandboxError::Vm(Error::Ended(VmExit::GuestPanic(_)))),
        "{after}"
    );
}

#[tokio::test]
async fn pause_holds_commands_and_resume_lets_them_go_on() {
    let sandbox = sandbox().await;
    let mut child = sandbox
        .spawn(Command::new("cat").stdin(CommandInput::Piped))
        .await
        .unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());

    sandbox.pause().await.unwrap();
    assert_eq!(sandbox.status().await, VmStatus::Paused);
    sandbox.resume().await.unwrap();
    stdin.write_all(b"x").await.unwrap();
    let mut byte = [0];
    stdout.read_exact(&mut byte).await.unwrap();

    assert_eq!(&byte, b"x");
    assert_eq!(sandbox.status().await, VmStatus::Running);
}

#[tokio::test]
async fn forwarded_port_leads_into_the_guest() {
    let sandbox = sandbox().await;
    let _server = sandbox
        .spawn(["nc", "-ll", "-p", "8000", "-e", "cat"])
        .await
        .unwrap();
    let listens = "until grep -q :1F40 /proc/net/tcp /proc/net/tcp6; do :; done";
    output_of(&sandbox, listens).await;
    let forward = sandbox
        .forward("127.0.0.1:0".parse().unwrap(), 8000)
        .await
        .unwrap();

    let mut stream = tokio::net::TcpStream::connect(forward.address())
        .await
        .unwrap();
    stream.write_all(b"through").await.unwrap();
    let mut echoed = [0; 7];
    stream.read_exact(&mut echoed).await.unwrap();

    assert_eq!(&echoed, b"through");
}

#[tokio::test]
async fn time_that_is_over_ends_the_sandbox() {
    let sandbox = create(builder().await.timeout(Duration::from_secs(20))).await;

    let lost = sandbox.exec(["sleep", "1000"]).await;

    assert!(
        matches!(lost, Err(SandboxError::Vm(Error::Ended(VmExit::Killed)))),
        "{lost:?}"
    );
    assert!(sandbox.time_is_over());
}

#[tokio::test]
async fn start_that_fails_names_its_phase() {
    let empty = tempfile::tempdir().unwrap();
    fs::write(empty.path().join("file"), "").unwrap();

    // A directory without a single program boots: nothing in it can be run.
    let bare = create(builder().await.rootfs(empty.path())).await;
    let no_shell = bare.shell("true").await.unwrap_err();
    assert_eq!(no_shell.shell_code(), 127, "{no_shell}");

    let missing = builder().await.rootfs("/no/such/root").create().await;
    let missing = missing.err().unwrap().to_string();
    assert!(missing.starts_with("rootfs: /no/such/root"), "{missing}");
}
