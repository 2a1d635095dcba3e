//! `capsa run` with a command, and the commands about sandboxes in the background, with real guests.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Child;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use support::{Capsa, text};

fn signal(child: &Child, signal: Signal) {
    let id = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}

#[test]
fn command_gives_its_own_output_and_status() {
    let capsa = Capsa::new();

    let output = capsa.output(&[
        "run",
        "--memory",
        "256M",
        "--",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ]);

    assert_eq!(text(&output.stdout), "out\n", "{output:?}");
    assert!(text(&output.stderr).ends_with("err\n"), "{output:?}");
    assert_eq!(output.status.code(), Some(7));
    assert!(capsa.left().is_empty());
}

#[test]
fn command_that_is_missing_or_none_is_told_as_shells_do() {
    let capsa = Capsa::new();
    assert_eq!(capsa.status(&["run", "--", "no-such-program"]), 127);
    assert_eq!(capsa.status(&["run", "--", "/etc/passwd"]), 126);
    assert_eq!(capsa.status(&["run", "/no/such/root", "--", "true"]), 125);
    assert_eq!(
        capsa.status(&["run", "--timeout", "5s", "--", "sleep", "1000"]),
        124
    );
    assert_eq!(capsa.status(&["run", "--", "sh", "-c", "kill -9 $$"]), 137);
}

#[test]
fn standard_input_is_passed_on_when_asked_and_signals_too() {
    let capsa = Capsa::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(500_000).collect();

    let output = capsa.feed(&["run", "-i", "--", "cat"], &bytes);
    assert!(output.stdout == bytes, "{} bytes", output.stdout.len());

    let script = "trap 'echo heard; exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = capsa
        .command(&["run", "--", "sh", "-c", script])
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    signal(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "heard\n", "{output:?}");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn directory_share_environment_and_directory_are_as_asked() {
    let capsa = Capsa::new();
    let (root, share) = (busybox_root(), tempfile::tempdir().unwrap());
    let shared = format!("{}:/work:rw", share.path().display());

    let output = capsa.output(&[
        "run",
        root.path().to_str().unwrap(),
        "-e",
        "NAME=value",
        "-w",
        "/work",
        "--share",
        &shared,
        "--",
        "sh",
        "-c",
        "pwd; echo $NAME; echo by the guest > made; echo x > /changed",
    ]);

    assert_eq!(text(&output.stdout), "/work\nvalue\n", "{output:?}");
    let made = fs::read_to_string(share.path().join("made")).unwrap();
    assert_eq!(made, "by the guest\n");
    assert!(!root.path().join("changed").exists());
}

#[test]
fn sandbox_in_the_background_is_used_stopped_and_removed() {
    let capsa = Capsa::new();
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("file"), "content").unwrap();

    let name = capsa.text(&["run", "-d", "--name", "box", "--memory", "256M"]);
    assert_eq!(name, "box\n");
    assert_eq!(capsa.status(&["run", "-d", "--name", "box"]), 125);
    assert_eq!(capsa.text(&["exec", "box", "echo", "here"]), "here\n");
    assert_eq!(
        capsa.status(&["exec", "box", "--", "sh", "-c", "exit 9"]),
        9
    );
    let fed = capsa.feed(&["exec", "-i", "box", "wc", "-c"], &[0; 70_000]);
    assert_eq!(text(&fed.stdout).trim(), "70000", "{fed:?}");

    let file = place.path().join("file");
    capsa.text(&["cp", file.to_str().unwrap(), "box:/tmp"]);
    assert_eq!(capsa.text(&["exec", "box", "cat", "/tmp/file"]), "content");
    let back = place.path().join("back");
    capsa.text(&["cp", "box:/tmp/file", back.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&back).unwrap(), "content");

    assert!(capsa.text(&["ps"]).contains("running"));
    let inspected = capsa.text(&["inspect", "box"]);
    assert!(inspected.contains("timings_ms"), "{inspected}");
    assert_eq!(capsa.status(&["rm", "box"]), 125);
    capsa.text(&["stop", "box"]);
    capsa.text(&["wait", "box"]);
    assert!(
        capsa.text(&["ps", "--json"]).contains("powered_off")
            || capsa.text(&["ps"]).contains("ended")
    );
    capsa.text(&["rm", "--force", "box"]);
    assert!(capsa.left().is_empty());
}

#[test]
fn command_in_the_background_is_logged_and_followed_to_its_end() {
    let capsa = Capsa::new();
    let script = "echo first; echo second >&2; sleep 1; exit 4";
    capsa.text(&["run", "-d", "--name", "job", "--", "sh", "-c", script]);

    let followed = capsa.text(&["logs", "-f", "job"]);
    let status = capsa.status(&["wait", "job"]);
    let listed = capsa.text(&["ps"]);
    capsa.text(&["rm", "-f", "job"]);

    assert!(
        followed.contains("first\n") && followed.contains("second\n"),
        "{followed}"
    );
    assert_eq!(status, 4);
    assert!(listed.contains("ended (4)"), "{listed}");
    assert!(capsa.left().is_empty());
}

#[test]
fn killed_monitor_is_told_and_cleaned_up() {
    let capsa = Capsa::new();
    capsa.text(&["run", "-d", "--name", "box"]);
    let inspected: serde_json::Value =
        serde_json::from_str(&capsa.text(&["inspect", "box"])).unwrap();
    let monitor = i32::try_from(inspected["monitor"].as_i64().unwrap()).unwrap();

    kill_process(Pid::from_raw(monitor).unwrap(), Signal::KILL).unwrap();
    capsa.output(&["wait", "box"]);
    let listed = capsa.text(&["ps"]);
    assert!(listed.contains("failed (monitor)"), "{listed}");
    capsa.text(&["rm", "-f", "box"]);
    assert!(capsa.left().is_empty());
}

fn busybox_root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["bin", "etc", "tmp", "root"] {
        fs::create_dir(root.path().join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    link(root.path(), "sh");
    root
}

fn link(root: &Path, command: &str) {
    symlink("busybox", root.join("bin").join(command)).unwrap();
}
