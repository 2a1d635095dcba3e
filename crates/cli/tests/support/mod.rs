//! What tests of the sandbox and network commands share.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A runtime directory of the test's own, and `capsa` in it.
pub(crate) struct Capsa {
    directory: TempDir,
}

impl Capsa {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let backend = std::env::var("CAPSA_TEST_BACKEND").unwrap_or_else(|_| "auto".to_owned());
        let mut command = Command::new(env!("CARGO_BIN_EXE_capsa"));
        command
            .args(arguments)
            .env("CAPSA_BACKEND", backend)
            .env("CAPSA_RUNTIME_DIR", self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command that succeeds writes.
    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        text(&output.stdout)
    }

    pub(crate) fn status(&self, arguments: &[&str]) -> i32 {
        let output = self.output(arguments);
        output
            .status
            .code()
            .unwrap_or_else(|| panic!("{arguments:?}: {output:?}"))
    }

    pub(crate) fn feed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        output
    }

    /// What is in the runtime directory.
    pub(crate) fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// What a command that succeeds writes, which is JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.text(arguments)).unwrap()
    }

    /// What a command says that is refused.
    pub(crate) fn refusal(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert_eq!(output.status.code(), Some(125), "{arguments:?}: {output:?}");
        text(&output.stderr)
    }
}

impl Drop for Capsa {
    /// What a test that failed has left running ends.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for (list, remove) in [
            (&["ps", "--json"][..], &["rm", "-f"][..]),
            (&["network", "ls", "--json"], &["network", "rm", "-f"]),
        ] {
            let Ok(listed) = self.command(list).output() else {
                continue;
            };
            let listed = serde_json::from_slice(&listed.stdout).unwrap_or_default();
            let Some(listed) = serde_json::Value::as_array(&listed).cloned() else {
                continue;
            };
            for name in listed.iter().filter_map(|info| info["name"].as_str()) {
                let arguments: Vec<_> = remove.iter().copied().chain([name]).collect();
                let _best_effort = self.command(&arguments).output();
            }
        }
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Ends a process whose number JSON has.
pub(crate) fn kill(process: &serde_json::Value) {
    use rustix::process::{Pid, Signal, kill_process};
    let process = i32::try_from(process.as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(process).unwrap(), Signal::KILL).unwrap();
}
