//! Cargo's runner for macOS, with a stand-in for `codesign` that only notes what it was asked.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Knows a file for signed that has `.signed` beside it, as `--sign` leaves it.
const CODESIGN: &str = r#"#!/bin/sh
for file; do :; done
case $1 in
    --display) [ -f "$file.signed" ] && echo com.apple.security.virtualization ;;
    --sign) echo "$*" >> "$(dirname "$0")/log"; : > "$file.signed" ;;
esac
"#;

fn runner() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../codesign-run")
}

struct Folder(TempDir);

impl Folder {
    /// With a `codesign`, and a program that says its arguments and exits with status 3.
    fn new() -> Self {
        let folder = Self(TempDir::new().unwrap());
        fs::create_dir(folder.path("deps")).unwrap();
        folder.program("codesign", CODESIGN);
        folder.program("deps/program", "#!/bin/sh\necho \"$@\"\nexit 3\n");
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self) -> Output {
        let path = std::env::var("PATH").unwrap();
        Command::new(runner())
            .arg(self.path("deps/program"))
            .args(["one", "two words"])
            .env("PATH", format!("{}:{path}", self.0.path().display()))
            .output()
            .unwrap()
    }

    /// The last word of each request to sign.
    fn signed(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        let file = |line: &str| line.rsplit('/').next().unwrap().to_owned();
        log.lines().map(file).collect()
    }
}

#[test]
fn program_is_signed_once_with_the_entitlement_and_becomes_the_runner() {
    let folder = Folder::new();

    let first = folder.run();
    let second = folder.run();

    for output in [first, second] {
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "one two words\n");
    }
    assert_eq!(folder.signed(), ["program"]);
    let log = fs::read_to_string(folder.path("log")).unwrap();
    let (_, entitlements) = log.split_once("--entitlements ").unwrap();
    let entitlements = entitlements.split(' ').next().unwrap();
    let entitlements = fs::read_to_string(entitlements).unwrap();
    assert!(entitlements.contains("<key>com.apple.security.virtualization</key>"));
}

#[test]
fn daemon_above_a_test_program_is_signed_too() {
    let folder = Folder::new();
    folder.program("capsa-vzd", "");

    folder.run();

    assert_eq!(folder.signed(), ["program", "capsa-vzd"]);
}
