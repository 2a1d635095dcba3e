//! What `capsa` says of input that it cannot use. Nothing here starts a virtual machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::os::unix::net::UnixListener;

use assert_cmd::Command;
use tempfile::TempDir;

/// `capsa` with an environment in which nothing is found that the test did not make.
fn capsa(home: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_capsa"));
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", home.path())
        .current_dir(home.path());
    command
}

fn home() -> TempDir {
    TempDir::new().unwrap()
}

/// Runs `capsa ARGUMENTS`; its status and what it wrote to standard error.
fn refused(home: &TempDir, arguments: &[&str]) -> (i32, String) {
    let output = capsa(home).args(arguments).output().unwrap();
    assert_eq!(output.stdout, b"", "{arguments:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code().unwrap(), text)
}

#[track_caller]
fn assert_refused(home: &TempDir, arguments: &[&str], words: &[&str]) {
    let (status, text) = refused(home, arguments);
    assert_eq!(status, 125, "{text}");
    assert!(text.starts_with("capsa: error: "), "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

#[test]
fn no_kernel_anywhere_names_the_command_that_gets_one() {
    assert_refused(
        &home(),
        &["run"],
        &["kernel", "CAPSA_KERNEL", "capsa kernel build"],
    );
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    assert_refused(
        &home(),
        &["run", "--kernel", "/no/such/kernel"],
        &["kernel: /no/such/kernel", "check the path"],
    );
}

#[test]
fn settings_out_of_range_are_named_with_the_range() {
    let home = home();
    fs::write(home.path().join("k"), "k").unwrap();
    for (arguments, words) in [
        (["--cpus", "0"], ["cpus: 0", "1 to 64"]),
        (["--cpus", "65"], ["cpus: 65", "1 to 64"]),
        (["--memory", "1M"], ["memory: 1 MiB", "32 MiB"]),
        (["--memory", "1024T"], ["memory: 1024 TiB", "4 TiB"]),
        (
            ["--memory", "64000001"],
            ["memory: 64000001 bytes", "4 KiB"],
        ),
    ] {
        assert_refused(
            &home,
            &["run", "--kernel", "k", arguments[0], arguments[1]],
            &words,
        );
    }
}

#[test]
fn a_command_line_that_does_not_fit_says_by_how_much() {
    let home = home();
    fs::write(home.path().join("k"), "k").unwrap();
    let long = "x".repeat(3000);
    assert_refused(
        &home,
        &["run", "--kernel", "k", "--cmdline", &long],
        &["cmdline", "3000 bytes", "shorten it by 953"],
    );
}

#[test]
fn an_initrd_that_is_not_there_is_named() {
    let home = home();
    fs::write(home.path().join("k"), "k").unwrap();
    assert_refused(
        &home,
        &["run", "--kernel", "k", "--initrd", "/no/initrd"],
        &["initramfs: /no/initrd"],
    );
}

#[test]
fn a_wrong_variable_is_named() {
    let home = home();
    fs::write(home.path().join("k"), "k").unwrap();
    capsa(&home)
        .env("CAPSA_BACKEND", "hyperv")
        .args(["run", "--kernel", "k"])
        .assert()
        .code(125)
        .stderr("capsa: error: CAPSA_BACKEND: hyperv: there is no backend of this name; use auto or one of: kvm, macos-subprocess, macos-native, vfkit, qemu\n");
}

#[test]
fn vsock_ports_that_lead_nowhere_are_refused_before_the_start() {
    let home = home();
    fs::write(home.path().join("k"), "k").unwrap();
    let _listener = UnixListener::bind(home.path().join("socket")).unwrap();
    for (arguments, words) in [
        (
            &["--vsock-port", "5000:missing"][..],
            ["5000:missing", "No such file"],
        ),
        (&["--vsock-port", "5000:k"], ["5000:k", "not a socket"]),
        (
            &["--vsock-port", "5000:socket", "--vsock-port", "5000:socket"],
            ["5000:socket", "twice"],
        ),
        (
            &["--vsock-port", "5000:socket", "-d", "--", "true"],
            ["--vsock-port", "--detach"],
        ),
    ] {
        let arguments = [&["run", "--kernel", "k"], arguments].concat();
        assert_refused(&home, &arguments, &words);
    }
    for (port, word) in [("52100:socket", "agent"), ("socket:5000", "PORT:PATH")] {
        let (status, text) = refused(&home, &["run", "--vsock-port", port]);
        assert_eq!(status, 2, "{text}");
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn arguments_that_cannot_be_understood_exit_with_2() {
    for arguments in [
        &["run", "--memory", "lots"][..],
        &["run", "--backend", "hyperv"],
        &["run", "--timeout", "soon"],
        &["run", "--nonsense"],
        &["nonsense"],
    ] {
        let (status, text) = refused(&home(), arguments);
        assert_eq!(status, 2, "{text}");
    }
}

#[test]
fn a_file_that_is_no_kernel_is_not_imported() {
    let home = home();
    fs::write(home.path().join("notes.txt"), "not a kernel").unwrap();
    assert_refused(&home, &["kernel", "import", "notes.txt"], &["notes.txt"]);
    assert_refused(&home, &["kernel", "remove", "nonsense"], &["nonsense"]);
}

#[test]
fn help_names_every_exit_status_and_the_key_that_leaves() {
    let output = capsa(&home()).args(["run", "--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["Exit status", "Ctrl-]", "  31  ", "--cpus", "auto"] {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn version_and_backends_are_valid_json_on_request() {
    for command in ["version", "backends"] {
        let output = capsa(&home()).args([command, "--json"]).output().unwrap();
        assert!(output.status.success());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
    }
}

#[test]
fn completions_are_made_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = capsa(&home())
            .args(["completions", shell])
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("doctor"));
    }
}
