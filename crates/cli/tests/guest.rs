//! `capsa run` with a real guest: by the backend that `CAPSA_TEST_BACKEND` names, or the first that
//! can be used.
#![cfg(unix)]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

fn capsa_run(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capsa"));
    let backend = std::env::var("CAPSA_TEST_BACKEND").unwrap_or_else(|_| "auto".to_owned());
    command
        .args(["run", "--memory", "256M", "--backend", &backend])
        .args(arguments)
        .env_remove("CAPSA_BACKEND")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn start(arguments: &[&str]) -> (Child, ChildStdin) {
    let mut child = capsa_run(arguments).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}

/// Runs `capsa run` with this script on its standard input.
fn run_script(arguments: &[&str], script: &str) -> Output {
    let (child, mut stdin) = start(arguments);
    stdin.write_all(script.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads from a running guest until `expected` has come.
fn read_until(from: &mut impl Read, expected: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !text(&seen).ends_with(expected) {
        assert_eq!(
            from.read(&mut byte).unwrap_or(0),
            1,
            "ended: {}",
            text(&seen)
        );
        seen.push(byte[0]);
    }
    text(&seen)
}

fn signal(child: &Child, signal: Signal) {
    let id = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}

#[test]
fn a_piped_script_is_answered_with_clean_bytes_and_status_0() {
    let output = run_script(&["--cpus", "2"], "uname -s; nproc; poweroff -f\n");
    assert_eq!(text(&output.stdout), "Linux\n2\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn the_end_of_standard_input_does_not_end_the_guest() {
    let output = run_script(&[], "sleep 1; echo still here; poweroff -f\n");
    assert_eq!(text(&output.stdout), "still here\n", "{output:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn each_end_of_the_guest_has_a_status_of_its_own() {
    for (script, status, word) in [
        ("reboot -f\n", 30, "reset"),
        ("echo c > /proc/sysrq-trigger\n", 31, "panicked"),
    ] {
        let output = run_script(&[], script);
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(text(&output.stderr).contains(word), "{output:?}");
    }
}

#[test]
fn binary_input_and_output_are_not_changed() {
    let bytes: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    let (mut child, mut stdin) = start(&[]);
    let mut stdout = child.stdout.take().unwrap();
    stdin
        .write_all(b"echo ready; head -c 20000 > /tmp/in; cat /tmp/in; poweroff -f\n")
        .unwrap();
    read_until(&mut stdout, "ready\n");
    stdin.write_all(&bytes).unwrap();
    let mut received = Vec::new();
    stdout.read_to_end(&mut received).unwrap();
    assert!(received == bytes, "{} bytes", received.len());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Answers each of `count` connections with what it asked, reversed.
fn reverse(listener: UnixListener, count: usize) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for _ in 0..count {
            let (mut called, _) = listener.accept().unwrap();
            let mut asked = Vec::new();
            called.read_to_end(&mut asked).unwrap();
            asked.reverse();
            called.write_all(&asked).unwrap();
        }
    })
}

#[test]
fn a_vsock_port_leads_to_a_unix_socket_of_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let service = reverse(UnixListener::bind(&path).unwrap(), 3);
    let port = format!("5000:{}", path.display());
    let ask = |word| format!("printf {word} | vsock connect 5000");

    let script = format!("{}; {}; poweroff -f\n", ask("abc"), ask("def"));
    let console = run_script(&["--vsock-port", &port], &script);
    let command = ask("ghi");
    let sandbox = run_script(&["--vsock-port", &port, "--", "sh", "-c", &command], "");

    assert_eq!(text(&console.stdout), "cbafed", "{console:?}");
    assert_eq!(console.status.code(), Some(0), "{console:?}");
    assert_eq!(text(&sandbox.stdout), "ihg", "{sandbox:?}");
    assert_eq!(sandbox.status.code(), Some(0), "{sandbox:?}");
    service.join().unwrap();
}

#[test]
fn a_signal_ends_the_guest_in_order_and_shows_in_the_status() {
    for (kind, status) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (mut child, mut stdin) = start(&[]);
        stdin.write_all(b"echo ready\n").unwrap();
        read_until(child.stdout.as_mut().unwrap(), "ready\n");
        signal(&child, kind);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(text(&output.stderr).contains("ended"), "{output:?}");
    }
}

#[test]
fn a_closed_output_ends_the_guest_quietly() {
    let (mut child, mut stdin) = start(&[]);
    stdin.write_all(b"yes\n").unwrap();
    let mut stdout = child.stdout.take().unwrap();
    read_until(&mut stdout, "y\ny\n");
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert!(!text(&output.stderr).contains("error"), "{output:?}");
}

#[test]
fn a_time_limit_ends_the_guest() {
    let (child, stdin) = start(&["--timeout", "1s"]);
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    assert!(text(&output.stderr).contains("--timeout"), "{output:?}");
}

/// A terminal, and `capsa run` on it.
struct Terminal {
    person: File,
    child: Child,
}

impl Terminal {
    fn start() -> Self {
        let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let size = Winsize {
            ws_row: 33,
            ws_col: 101,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&person, size).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let end = || -> OwnedFd {
            let path = name.to_str().unwrap();
            let file = File::options().read(true).write(true).open(path);
            file.unwrap().into()
        };
        let child = capsa_run(&[])
            .env("TERM", "xterm-256color")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        Self {
            person: person.into(),
            child,
        }
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.person).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }
}

#[test]
fn a_terminal_is_raw_for_a_shell_with_its_size_and_type_and_is_brought_back() {
    let mut terminal = Terminal::start();
    let before = read_until(&mut terminal.person, "# ");
    assert!(!before.contains("Linux version"), "{before}");
    assert!(terminal.is_raw());

    terminal
        .person
        .write_all(b"stty size; echo $TERM\r")
        .unwrap();
    read_until(&mut terminal.person, "\n33 101\r\n");
    read_until(&mut terminal.person, "xterm-256color\r\n");

    terminal.person.write_all(b"\x1d").unwrap();
    let last = read_until(&mut terminal.person, "was ended");
    assert!(last.contains("left with Ctrl-]"), "{last}");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(35));
    assert!(!terminal.is_raw());
}

#[test]
fn a_terminal_is_brought_back_when_a_signal_ends_the_command() {
    let mut terminal = Terminal::start();
    read_until(&mut terminal.person, "# ");
    assert!(terminal.is_raw());
    signal(&terminal.child, Signal::HUP);
    read_until(&mut terminal.person, "was ended");
    let status = terminal.child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(129), None));
    assert!(!terminal.is_raw());
}
