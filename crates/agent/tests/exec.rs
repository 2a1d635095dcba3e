//! Commands, through the agent as a process of this machine.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeSet;

use capsa_agent_client::{AgentError, Command, CommandInput, ExitStatus, FailureKind, Terminal};
use sha2::{Digest, Sha256};
use support::{Agent, memory, sh, text, within};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn command_gives_its_streams_and_status() {
    let agent = Agent::start().await;
    let output = agent.output(sh("echo out; echo err >&2; exit 3")).await;
    assert_eq!(output.status, ExitStatus::Code(3));
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\n", "err\n")
    );
}

#[tokio::test]
async fn arguments_arrive_as_they_are() {
    let agent = Agent::start().await;
    let command = Command::new("printf").arguments(["%s|", "a b", "", "$HOME", "'\"\\", "\n"]);
    let output = agent.output(command).await;
    assert_eq!(text(&output.stdout), "a b||$HOME|'\"\\|\n|");
}

#[tokio::test]
async fn every_exit_status_arrives() {
    let agent = Agent::start().await;
    for code in 0..=255u8 {
        let output = agent.output(sh(&format!("exit {code}"))).await;
        assert_eq!(output.status, ExitStatus::Code(code));
    }
}

#[tokio::test]
async fn every_signal_that_ends_a_command_is_told() {
    let agent = Agent::start().await;
    // Those that stop, continue or are ignored by default end nothing.
    let harmless = BTreeSet::from([17, 18, 19, 20, 21, 22, 23, 28]);
    for number in (1..=31)
        .chain(34..=64)
        .filter(|number| !harmless.contains(number))
    {
        let child = within(agent.client.spawn(Command::new("sleep").argument("1000")))
            .await
            .unwrap();
        child.signal(number);
        let status = within(child.wait()).await.unwrap();
        assert_eq!(status.signal(), Some(number));
    }
}

#[tokio::test]
async fn missing_program_is_told_from_one_that_cannot_be_executed() {
    let agent = Agent::start().await;
    let plain = agent.path("plain");
    std::fs::write(&plain, "text").unwrap();
    let no_interpreter = agent.path("script");
    std::fs::write(&no_interpreter, "#!/no/such/interpreter\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&no_interpreter, mode).unwrap();

    for missing in ["no-such-program", "/no/such/program", ""] {
        let error = within(agent.client.spawn(Command::new(missing)))
            .await
            .unwrap_err();
        assert!(
            matches!(error, AgentError::CommandNotFound { .. }),
            "{error:?}"
        );
        assert_eq!(error.shell_code(), 127);
    }
    for unusable in [plain.as_path(), no_interpreter.as_path(), "/tmp".as_ref()] {
        let error = within(agent.client.spawn(Command::new(unusable)))
            .await
            .unwrap_err();
        assert!(
            matches!(error, AgentError::NotExecutable { .. }),
            "{error:?}"
        );
        assert_eq!(error.shell_code(), 126);
    }
}

#[tokio::test]
async fn arguments_that_are_too_long_are_refused_by_name() {
    let agent = Agent::start().await;
    // One of 200 KiB is more than the kernel takes; 1 MiB in all is more than a request takes.
    let long = Command::new("true").argument("x".repeat(200 << 10));
    let many = Command::new("true").arguments(vec!["x".repeat(1000); 1100]);
    for command in [long, many] {
        let error = within(agent.client.spawn(command)).await.unwrap_err();
        assert!(
            matches!(error, AgentError::ArgumentsTooLong { bytes, .. } if bytes > 200_000),
            "{error:?}"
        );
    }
    let fits = Command::new("true").arguments(vec!["x".repeat(1000); 900]);
    assert!(agent.output(fits).await.status.success());
}

#[tokio::test]
async fn environment_and_directory_are_the_commands() {
    let agent = Agent::start().await;
    let command = sh("echo $ONE-$HOME-$USER; pwd")
        .environment("ONE", "1")
        .without_environment("USER")
        .directory("/usr");
    let output = agent.output(command).await;
    assert_eq!(text(&output.stdout), "1-/root-\n/usr\n");

    let only = Command::new("env")
        .clear_environment()
        .environment("A", "b=c");
    assert_eq!(text(&agent.output(only).await.stdout), "A=b=c\n");
}

#[tokio::test]
async fn missing_directory_and_user_are_told() {
    let agent = Agent::start().await;
    for (command, kind) in [
        (
            Command::new("true").directory("/no/such"),
            FailureKind::WorkingDirectory,
        ),
        (
            Command::new("true").user("no-such-user"),
            FailureKind::UnknownUser,
        ),
    ] {
        let error = within(agent.client.spawn(command)).await.unwrap_err();
        assert_eq!(error.failure_kind(), Some(kind), "{error}");
    }
}

#[tokio::test]
async fn command_runs_as_the_user_that_was_asked_for() {
    assert!(
        rustix::process::geteuid().is_root(),
        "only root can become another user"
    );
    let agent = Agent::start().await;
    let output = agent
        .output(sh("id -u; id -g; id -G; echo $HOME").user("nobody"))
        .await;
    assert_eq!(text(&output.stdout), "65534\n65534\n65534\n/nonexistent\n");
    let output = agent
        .output(sh("id -u; id -g; id -G").user("1234:567"))
        .await;
    assert_eq!(text(&output.stdout), "1234\n567\n567\n");
}

#[tokio::test]
async fn gibibyte_through_cat_is_intact_in_bounded_memory() {
    let agent = Agent::start().await;
    let cat = Command::new("cat").stdin(CommandInput::Piped);
    let mut child = within(agent.client.spawn(cat)).await.unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let block: Vec<u8> = (0..MIB).map(|index| (index * 31 % 251) as u8).collect();

    let write = async {
        let mut digest = Sha256::new();
        for _ in 0..1024 {
            digest.update(&block);
            stdin.write_all(&block).await.unwrap();
        }
        drop(stdin);
        digest.finalize()
    };
    let read = async {
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match stdout.read(&mut buffer).await.unwrap() {
                0 => break digest.finalize(),
                count => digest.update(&buffer[..count]),
            }
        }
    };
    let (written, read) = within(async { tokio::join!(write, read) }).await;

    assert_eq!(written, read);
    assert!(within(child.wait()).await.unwrap().success());
    let agent_memory = agent.peak_memory();
    assert!(agent_memory < 16 << 10, "the agent took {agent_memory} KiB");
    let ours = memory(std::process::id(), "VmHWM:");
    assert!(ours < 300 << 10, "the host took {ours} KiB");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_commands_at_once_of_mixed_sizes() {
    let agent = Agent::start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..200usize {
        let client = agent.client.clone();
        tasks.spawn(async move {
            let size = 1 + (index * index * 97) % 300_000;
            let script = format!(
                "head -c {size} /dev/zero; echo {index} >&2; exit {}",
                index % 256
            );
            let output = client.output(sh(&script)).await.unwrap();
            assert_eq!(output.stdout.len(), size);
            assert_eq!(text(&output.stderr), format!("{index}\n"));
            assert_eq!(output.status.code(), Some(index as i32 % 256));
        });
    }
    within(async {
        while let Some(one) = tasks.join_next().await {
            one.unwrap()
        }
    })
    .await;
}

#[tokio::test]
async fn reader_that_stalls_holds_up_only_its_own_command() {
    let agent = Agent::start().await;
    let mut stalled = within(agent.client.spawn(Command::new("yes")))
        .await
        .unwrap();
    let mut lines = BufReader::new(stalled.stdout.take().unwrap()).lines();
    assert_eq!(within(lines.next_line()).await.unwrap().unwrap(), "y");

    for _ in 0..20 {
        assert_eq!(agent.output(sh("echo on")).await.stdout, b"on\n");
    }
    // Signals and the end come through although nobody reads.
    stalled.signal(15);
    assert_eq!(within(stalled.wait()).await.unwrap().signal(), Some(15));
}

#[tokio::test]
async fn stderr_that_nobody_reads_does_not_hold_up_stdout_that_came_before() {
    let agent = Agent::start().await;
    let script = "(head -c 4000000 /dev/zero >&2) & head -c 2000000 /dev/zero; kill $!; exit 0";
    let mut child = within(agent.client.spawn(sh(script))).await.unwrap();
    let mut bytes = Vec::new();
    within(child.stdout.take().unwrap().read_to_end(&mut bytes))
        .await
        .unwrap();
    assert_eq!(bytes.len(), 2_000_000);
    assert!(within(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn background_child_left_behind_does_not_hold_the_result_and_lives_on() {
    let agent = Agent::start().await;
    let done = agent.path("done");
    let go = agent.path("go");
    rustix::fs::mkfifoat(rustix::fs::CWD, &go, rustix::fs::Mode::RWXU).ok();
    let script = format!(
        "mkfifo {go} 2>/dev/null; (read x < {go}; echo late; echo late >&2; touch {done}) & echo early",
        go = go.display(),
        done = done.display()
    );

    let output = agent.output(sh(&script)).await;

    assert_eq!(
        (text(&output.stdout), output.status),
        ("early\n", ExitStatus::Code(0))
    );
    let finish = format!(
        "echo > {}; while ! test -e {}; do sleep 0.05; done",
        go.display(),
        done.display()
    );
    assert!(agent.output(sh(&finish)).await.status.success());
}

#[tokio::test]
async fn noisy_background_child_does_not_hold_the_result() {
    let agent = Agent::start().await;
    let output = agent.output(sh("yes & echo $! >&2; exit 4")).await;
    assert_eq!(output.status, ExitStatus::Code(4));
    let pid = text(&output.stderr).trim().to_owned();
    agent
        .output(Command::new("kill").arguments(["-9", &pid]))
        .await;
}

#[tokio::test]
async fn kill_during_output_ends_the_whole_group() {
    let agent = Agent::start().await;
    let mut child = within(agent.client.spawn(sh("yes & yes & yes")))
        .await
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut some = vec![0; 100_000];
    within(stdout.read_exact(&mut some)).await.unwrap();

    child.kill();

    assert_eq!(within(child.wait()).await.unwrap().signal(), Some(9));
    within(tokio::io::copy(&mut stdout, &mut tokio::io::sink()))
        .await
        .unwrap();
    let group = format!(
        "while kill -0 -{} 2>/dev/null; do sleep 0.05; done",
        child.id()
    );
    assert!(agent.output(sh(&group)).await.status.success());
}

#[tokio::test]
async fn command_ends_with_its_handle() {
    let agent = Agent::start().await;
    let child = within(agent.client.spawn(sh("sleep 1000 & sleep 1000")))
        .await
        .unwrap();
    let pid = child.id();

    drop(child);

    let gone = format!("while kill -0 -{pid} 2>/dev/null; do sleep 0.05; done");
    assert!(agent.output(sh(&gone)).await.status.success());
}

#[tokio::test]
async fn detached_command_outlives_its_handle_and_its_output() {
    let agent = Agent::start().await;
    let done = agent.path("done");
    let script = format!(
        "head -c 5000000 /dev/zero; touch {}; sleep 1000",
        done.display()
    );
    let child = within(agent.client.spawn(sh(&script).detached()))
        .await
        .unwrap();
    let pid = child.id();

    drop(child);

    let wait = format!(
        "while ! test -e {}; do sleep 0.05; done; kill -9 -{pid}",
        done.display()
    );
    assert!(agent.output(sh(&wait)).await.status.success());
}

#[tokio::test]
async fn terminal_has_the_size_that_it_was_given_last() {
    let agent = Agent::start().await;
    let size = |rows, columns| Terminal { rows, columns };
    let script = "stty size; read line; stty size; tty; echo bye";
    let mut child = within(agent.client.spawn(sh(script).terminal(size(24, 80))))
        .await
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(
        within(lines.next_line()).await.unwrap().unwrap().trim(),
        "24 80"
    );

    child.resize(size(50, 132));
    stdin.write_all(b"go\n").await.unwrap();

    let mut rest = Vec::new();
    while let Some(line) = within(lines.next_line()).await.unwrap() {
        rest.push(line.trim().to_owned());
    }
    assert_eq!(rest[..2], ["go", "50 132"]);
    assert!(rest[2].starts_with("/dev/pts/"), "{rest:?}");
    assert_eq!(rest[3], "bye");
    assert!(within(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn end_of_a_terminals_input_ends_its_reader() {
    let agent = Agent::start().await;
    let size = Terminal {
        rows: 5,
        columns: 20,
    };
    let mut child = within(agent.client.spawn(Command::new("cat").terminal(size)))
        .await
        .unwrap();
    drop(child.stdin.take());
    assert!(within(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn interrupt_typed_on_a_terminal_is_a_signal() {
    let agent = Agent::start().await;
    let size = Terminal {
        rows: 5,
        columns: 20,
    };
    // A shell that starts a program at this moment may wait for it all the same.
    let mut child = within(
        agent
            .client
            .spawn(sh("echo up; exec sleep 1000").terminal(size)),
    )
    .await
    .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(
        within(lines.next_line()).await.unwrap().unwrap().trim(),
        "up"
    );
    child
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"\x03")
        .await
        .unwrap();
    let status = within(child.wait()).await.unwrap();
    assert!(
        status.signal() == Some(2) || status.code() == Some(130),
        "{status}"
    );
}

#[tokio::test]
async fn writing_to_a_command_that_has_ended_is_a_broken_pipe() {
    let agent = Agent::start().await;
    let command = Command::new("true").stdin(CommandInput::Piped);
    let mut child = within(agent.client.spawn(command)).await.unwrap();
    within(child.wait()).await.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let error = within(stdin.write_all(&vec![0; MIB])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn command_that_reads_a_part_of_its_input_is_not_held_up() {
    let agent = Agent::start().await;
    let command = Command::new("head")
        .arguments(["-c", "10"])
        .stdin(CommandInput::Piped);
    let mut child = within(agent.client.spawn(command)).await.unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = within(stdin.write_all(&vec![b'x'; 3 * MIB])).await;
    assert!(within(child.wait()).await.unwrap().success());
}

#[tokio::test]
async fn agent_that_is_killed_is_told_and_nothing_hangs() {
    let mut agent = Agent::start().await;
    let mut child = within(agent.client.spawn(sh("echo up; sleep 1000")))
        .await
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut up = [0; 3];
    within(stdout.read_exact(&mut up)).await.unwrap();
    let pid = child.id();

    agent.process.kill().await.unwrap();

    let error = within(child.wait()).await.unwrap_err();
    assert!(matches!(error, AgentError::Gone { .. }), "{error:?}");
    assert!(within(stdout.read(&mut up)).await.is_err());
    let error = within(agent.client.output(sh("true"))).await.unwrap_err();
    assert!(matches!(error, AgentError::Connect(_)), "{error:?}");
    assert!(within(agent.control.event()).await.unwrap().is_none());
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn agent_leaves_nothing_of_its_own_to_a_command() {
    let agent = Agent::start().await;
    let script = "ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; cat /proc/self/oom_score_adj; umask";
    let output = agent.output(sh(script)).await;
    let text = text(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    // Three streams, and the directory that is listed.
    assert_eq!(lines[0], "4", "{text}");
    for line in &lines[1..3] {
        assert!(line.ends_with("0000000000000000"), "{text}");
    }
    assert_eq!(lines[3..], ["0", "0022"], "{text}");
}
