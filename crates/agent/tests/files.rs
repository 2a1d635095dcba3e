//! Files and trees, through the agent as a process of this machine.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use capsa_agent_client::{AgentError, Changes, ExtractOptions, FileKind, Timestamp, WriteOptions};
use support::{Agent, exists, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn file_is_written_and_read_back() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let path = agent.path("file");
    let content: Vec<u8> = (0..300_000u32).map(|index| (index % 251) as u8).collect();

    within(files.write(&path, &content)).await.unwrap();

    assert_eq!(within(files.read(&path)).await.unwrap(), content);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    let mut part = Vec::new();
    let mut reader = within(files.reader(&path, 100, Some(1000))).await.unwrap();
    within(reader.read_to_end(&mut part)).await.unwrap();
    assert_eq!(part, content[100..1100]);
}

#[tokio::test]
async fn file_is_appended_to_and_written_in_the_middle() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let path = agent.path("file");
    within(files.write(&path, "0123456789")).await.unwrap();
    let mut keep = WriteOptions::default();
    keep.truncate = false;
    let (mut append, mut middle) = (keep, keep);
    append.append = true;
    middle.offset = 2;
    middle.sync = true;
    for (options, text) in [(append, "ab"), (middle, "xy")] {
        let mut writer = within(files.writer(&path, options)).await.unwrap();
        writer.write_all(text.as_bytes()).await.unwrap();
        within(writer.finish()).await.unwrap();
    }
    assert_eq!(within(files.read(&path)).await.unwrap(), b"01xy456789ab");
    let mut exclusive = keep;
    exclusive.exclusive = true;
    let error = within(files.writer(&path, exclusive)).await.unwrap_err();
    assert_eq!(error.guest_errno(), Some(17));
}

#[tokio::test]
async fn full_disk_is_told_while_a_file_is_written() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let error = within(files.write("/dev/full", vec![0; 10 << 20]))
        .await
        .unwrap_err();
    assert_eq!(error.guest_errno(), Some(28), "{error}");
}

#[tokio::test]
async fn missing_file_is_told_with_its_path() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let error = within(files.read("/no/such/file")).await.unwrap_err();
    assert!(
        error.is_not_found() && error.to_string().contains("/no/such/file"),
        "{error}"
    );
    assert!(!within(files.exists("/no/such/file")).await.unwrap());
    assert!(within(files.exists("/etc/passwd")).await.unwrap());
}

#[tokio::test]
async fn directory_is_made_listed_renamed_and_removed() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let (path, moved) = (agent.path("one/two"), agent.path("moved"));
    within(files.make_directory(&path, true, 0o750))
        .await
        .unwrap();
    within(files.make_directory(&path, true, 0o700))
        .await
        .unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o750);
    for index in 0..2000 {
        fs::write(path.join(format!("file-{index}")), "x").unwrap();
    }
    within(files.symlink("file-1", path.join("link")))
        .await
        .unwrap();
    within(files.hard_link(path.join("file-1"), path.join("hard")))
        .await
        .unwrap();

    let entries = within(files.list(&path)).await.unwrap();

    assert_eq!(entries.len(), 2002);
    let link = entries
        .iter()
        .find(|entry| entry.name.as_bytes() == b"link")
        .unwrap();
    assert_eq!(link.metadata.unwrap().kind, FileKind::Symlink);
    assert_eq!(
        within(files.read_link(path.join("link")))
            .await
            .unwrap()
            .as_bytes(),
        b"file-1"
    );
    assert_eq!(
        within(files.metadata(path.join("hard")))
            .await
            .unwrap()
            .links,
        2
    );
    assert!(
        within(files.rename(&path, agent.path("one"), false))
            .await
            .is_err()
    );
    within(files.rename(&path, &moved, false)).await.unwrap();
    assert!(within(files.remove(&moved, false)).await.is_err());
    within(files.remove(&moved, true)).await.unwrap();
    assert!(!exists(&moved));
}

#[tokio::test]
async fn mode_times_and_length_are_changed() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let path = agent.path("file");
    fs::write(&path, "0123456789").unwrap();
    let time = Timestamp {
        seconds: 1_000_000_000,
        nanoseconds: 123_456_789,
    };
    let changes = Changes {
        mode: Some(0o4711),
        modified: Some(time),
        length: Some(4),
        user: Some(12),
        ..Changes::default()
    };

    within(files.change(&path, changes)).await.unwrap();

    let metadata = within(files.metadata(&path)).await.unwrap();
    assert_eq!(
        (metadata.mode, metadata.length, metadata.user),
        (0o4711, 4, 12)
    );
    assert_eq!(metadata.modified, time);
}

#[tokio::test]
async fn reader_that_is_dropped_early_leaves_the_agent_well() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let mut reader = within(files.reader("/dev/zero", 0, None)).await.unwrap();
    let mut some = vec![0; 1 << 20];
    within(reader.read_exact(&mut some)).await.unwrap();
    drop(reader);
    assert!(within(files.exists("/dev/zero")).await.unwrap());
}

fn exact() -> ExtractOptions {
    ExtractOptions {
        keep_set_id: true,
        keep_owners: true,
        ..ExtractOptions::default()
    }
}

/// 20,000 files in 200 directories, with links, odd modes, odd names and times.
fn make_tree(root: &Path) {
    for directory in 0..200 {
        let path = root.join(format!("d{}/e{directory}", directory % 7));
        fs::create_dir_all(&path).unwrap();
        for file in 0..100 {
            let name = [b"f\xff\n ".as_slice(), file.to_string().as_bytes()].concat();
            let name = path.join(OsStr::from_bytes(&name));
            match file {
                0 => symlink("../../nowhere", &name).unwrap(),
                1 => fs::hard_link(path.join("first"), &name)
                    .unwrap_or_else(|_| fs::write(&name, "").unwrap()),
                2 => fs::write(path.join("first"), "first").unwrap(),
                3 => fs::hard_link(path.join("first"), &name).unwrap(),
                _ => fs::write(&name, vec![b'x'; file * 7]).unwrap(),
            }
        }
        let odd = path.join("odd");
        fs::write(&odd, "odd").unwrap();
        let mode = 0o4001 + (directory as u32 % 8) * 0o111;
        fs::set_permissions(&odd, fs::Permissions::from_mode(mode)).unwrap();
        fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o1755 - (directory as u32 % 2) * 0o55),
        )
        .unwrap();
    }
}

/// One line for each file: all that has to be the same.
fn described(root: &Path) -> String {
    let output = Command::new("find")
        .arg(".")
        .args(["-printf", "%P %y %m %U %G %n %s %l "])
        .args(["-printf", "%T@\\0"])
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.status.success());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines: Vec<&str> = text
        .split('\0')
        // The size of a directory is the file system's own affair.
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn tree_of_twenty_thousand_files_comes_in_and_out_identical() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let [from, inside, back] = ["from", "inside", "back"].map(|name| agent.path(name));
    make_tree(&from);

    let summary = within(files.copy_in(&from, &inside, exact()))
        .await
        .unwrap();
    within(files.copy_out(&inside, &back, exact()))
        .await
        .unwrap();

    assert!(summary.files + summary.others >= 20_000, "{summary:?}");
    for copy in [&inside, &back] {
        let same = Command::new("diff")
            .args(["-r", "--no-dereference"])
            .args([&from, copy])
            .status()
            .unwrap();
        assert!(same.success());
        assert_eq!(described(&from), described(copy));
    }
    let memory = agent.peak_memory();
    assert!(memory < 16 << 10, "the agent took {memory} KiB");
}

#[tokio::test]
async fn copying_what_is_not_there_is_told_on_either_side() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    let error = within(files.copy_in("/no/such", agent.path("x"), exact()))
        .await
        .unwrap_err();
    assert!(matches!(error, AgentError::Local { .. }), "{error:?}");
    let error = within(files.copy_out("/no/such", agent.path("x"), exact()))
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
    let error = within(files.copy_out("/etc/passwd", "/no/such/x", exact()))
        .await
        .unwrap_err();
    assert!(matches!(error, AgentError::Local { .. }), "{error:?}");
    let error = within(files.copy_in("/etc/passwd", "/no/such/x", exact()))
        .await
        .unwrap_err();
    assert!(error.is_not_found(), "{error:?}");
}

#[tokio::test]
async fn copy_in_the_place_of_a_directory_is_refused_midway() {
    let agent = Agent::start().await;
    let files = agent.client.files();
    // A file cannot take a directory's place, however much is on its way.
    let from = agent.path("from");
    fs::write(&from, vec![0; 8 << 20]).unwrap();
    let place = agent.path("place");
    fs::create_dir(&place).unwrap();

    let error = within(files.copy_in(&from, &place, exact()))
        .await
        .unwrap_err();

    assert!(matches!(error, AgentError::Refused { .. }), "{error:?}");
}
