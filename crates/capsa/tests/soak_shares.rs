//! Real programs and the rules of POSIX on a directory of the host: `cargo xtask soak --program
//! soak_shares`; results are in docs/soak.md.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

use std::fs;
use std::path::Path;
use std::process::Command as Program;
use std::time::{Duration, Instant};

use capsa::test_utils::{backend, isolation};
use capsa::{Capsa, Command, OwnerMapping, Rootfs, Sandbox, ShareAccess, ShareSpec};
use rustix::process::{Resource, getrlimit};

/// Ends what hangs; the lab's guests are slow.
const LONG: Duration = Duration::from_secs(40 * 60);
/// Where the guest has the share.
const SHARE: &str = "/share";
const PYTHON: &str = "/usr/bin/python3";
const GIT: &str = "/usr/bin/git";
const POSIX: &str = include_str!("support/posix.py");
const STORM: &str = include_str!("support/metadata_storm.py");
/// Files of the storm; another number with `CAPSA_SOAK_FILES`.
const FILES: u64 = 20_000;
/// More than the guest knows at once of the storm's files; each takes a descriptor of the share's process.
const KNOWN_FILES: u64 = 30_000;
/// What stress-ng does, each by one of its workers.
const STRESSORS: [&str; 12] = [
    "hdd",
    "dir",
    "rename",
    "link",
    "symlink",
    "dentry",
    "chmod",
    "utime",
    "fallocate",
    "seek",
    "flock",
    "lockf",
];

/// A guest with this machine's programs and a share that it may write to.
async fn sandbox(host: &Path, owners: OwnerMapping) -> Sandbox {
    let builder = Capsa::sandbox()
        .backend(backend().await.backend)
        .isolation(isolation())
        .rootfs(Rootfs::Host)
        .memory_mib(1024)
        .share_spec(ShareSpec {
            access: ShareAccess::ReadWrite,
            owners,
            ..ShareSpec::new(host, SHARE)
        });
    builder
        .create()
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// What a script in the guest writes to both outputs; it must succeed.
async fn guest(sandbox: &Sandbox, script: &str) -> String {
    let merged = Command::new("sh").arguments(["-c", &format!("exec 2>&1; {script}")]);
    let output = tokio::time::timeout(LONG, sandbox.exec(merged))
        .await
        .unwrap()
        .unwrap_or_else(|error| panic!("{script}: {error}"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{script}: {told}");
    told
}

/// What a program of the host writes to both outputs; it must succeed.
fn host(program: &str, arguments: &[&str]) -> String {
    let output = Program::new(program).args(arguments).output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {told}");
    told
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The cases pass on a directory of the host itself, so they ask for nothing special; and so they do on
/// a share of one.
async fn posix_holds(owners: OwnerMapping, extent: &str) {
    let (local, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let script = local.path().join("posix.py");
    fs::write(&script, POSIX).unwrap();
    let mut arguments = vec![text(&script), text(local.path())];
    arguments.extend(extent.split_whitespace());
    let expected = host(PYTHON, &arguments);
    let sandbox = sandbox(shared.path(), owners).await;
    sandbox.files().write("/tmp/posix.py", POSIX).await.unwrap();

    let told = guest(
        &sandbox,
        &format!("{PYTHON} /tmp/posix.py {SHARE} {extent}"),
    )
    .await;

    print!("{owners:?}: {told}");
    assert_eq!(told, expected);
    assert!(shared.path().join("syncing_is_accepted/file").exists());
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn posix_holds_on_a_share_whose_files_are_the_callers() {
    posix_holds(OwnerMapping::Mapped, "").await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn posix_holds_on_a_share_with_users_of_its_own() {
    posix_holds(OwnerMapping::Passthrough, "own-users").await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn stress_ng_finds_nothing_wrong_with_a_share_in_a_minute() {
    let shared = tempfile::tempdir().unwrap();
    let sandbox = sandbox(shared.path(), OwnerMapping::Mapped).await;
    let workers: String = STRESSORS.map(|name| format!(" --{name} 1")).concat();

    let told = guest(
        &sandbox,
        &format!(
            "cd {SHARE} && stress-ng --temp-path {SHARE} --verify --timeout 60 --hdd-bytes 32m \
             --metrics-brief --stdout{workers}"
        ),
    )
    .await;

    println!("{told}");
    assert!(told.contains("successful run completed"), "{told}");
    for name in STRESSORS {
        // Its line of the metrics: name, operations, …
        let done = told.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word != name);
            words.next()?;
            words.next()?.parse::<u64>().ok()
        });
        assert!(done.is_some_and(|done| done > 0), "{name}: {done:?}");
    }
    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0);
}

/// A repository of some history: 20 commits, 800 files, some large, some run, some linked.
fn repository(folder: &Path) {
    let script = format!(
        "set -e; cd {}; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a \
         GIT_COMMITTER_EMAIL=a@b; {GIT} init -q -b main .; for c in $(seq 20); do \
         mkdir -p d$c/e/f; for n in $(seq 40); do seq $c $((n * 97)) > d$c/e/f/$n; done; \
         seq $c 200000 > large; chmod +x d$c/e/f/7; ln -s e/f/7 d$c/link; echo $c > changed; \
         {GIT} add -A; {GIT} commit -q -m \"Commit $c\"; done; {GIT} tag -a -m x v1 HEAD~5",
        folder.display()
    );
    host("sh", &["-c", &script]);
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn git_works_in_a_share_and_finds_its_repository_sound() {
    let (source, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    repository(source.path());
    let bare = shared.path().join("source.git");
    let clone = ["clone", "-q", "--bare", text(source.path()), text(&bare)];
    host(GIT, &clone);
    let sandbox = sandbox(shared.path(), OwnerMapping::Mapped).await;
    let begun = Instant::now();

    guest(
        &sandbox,
        &format!("cd {SHARE} && {GIT} clone -q file://{SHARE}/source.git work"),
    )
    .await;
    println!("cloned in {:.0} s", begun.elapsed().as_secs_f64());
    let clean = format!(
        "cd {SHARE}/work && {GIT} fsck --full --strict --no-progress && {GIT} status --porcelain"
    );
    assert_eq!(guest(&sandbox, &clean).await, "");
    guest(
        &sandbox,
        &format!(
            "set -e; cd {SHARE}/work; export HOME=/tmp; {GIT} config user.name a; {GIT} config user.email a@b; \
             {GIT} checkout -q v1; {GIT} checkout -q main; {GIT} checkout -q -b more HEAD~10; \
             echo new > changed; {GIT} mv d1 moved; {GIT} commit -q -am More; {GIT} merge -q -X ours main; \
             {GIT} gc -q --prune=now; {GIT} push -q origin more"
        ),
    )
    .await;
    assert_eq!(guest(&sandbox, &clean).await, "");
    println!("and all else in {:.0} s", begun.elapsed().as_secs_f64());

    let work = shared.path().join("work");
    for check in [
        &["fsck", "--full", "--strict", "--no-progress"][..],
        &["status", "--porcelain"],
        &["diff", "origin/more", "more"],
    ] {
        let arguments = [&["-C", text(&work)], check].concat();
        assert_eq!(host(GIT, &arguments), "", "{check:?}");
    }
    host(GIT, &["-C", text(&bare), "fsck", "--full", "--strict"]);
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn twenty_thousand_files_are_made_found_renamed_and_deleted() {
    let shared = tempfile::tempdir().unwrap();
    let local = tempfile::tempdir().unwrap();
    let files = std::env::var("CAPSA_SOAK_FILES").map_or(FILES, |text| text.parse().unwrap());
    let directories = (files / 100).to_string();
    let script = local.path().join("storm.py");
    fs::write(&script, STORM).unwrap();
    let sandbox = sandbox(shared.path(), OwnerMapping::Mapped).await;
    sandbox.files().write("/tmp/storm.py", STORM).await.unwrap();

    let limit = getrlimit(Resource::Nofile).maximum;
    let forget = if limit.is_some_and(|limit| limit < KNOWN_FILES) {
        println!("a process of this host has {limit:?} files at most: the guest forgets meanwhile");
        "forget"
    } else {
        ""
    };

    let told = guest(
        &sandbox,
        &format!("{PYTHON} /tmp/storm.py {SHARE} build {directories} {forget}"),
    )
    .await;
    print!("{told}");
    // The host finds the same as the guest says it has left.
    let check = [text(&script), text(shared.path()), "check", &directories];
    let found = host(PYTHON, &check);
    print!("on the host: {found}");
    let told = guest(
        &sandbox,
        &format!("{PYTHON} /tmp/storm.py {SHARE} delete {directories} {forget}"),
    )
    .await;
    print!("{told}");

    assert_eq!(fs::read_dir(shared.path()).unwrap().count(), 0);
}
