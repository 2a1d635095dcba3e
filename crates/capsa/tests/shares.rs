//! Directories of the host, as a guest finds them.
//!
//! What a hostile guest can ask of a share without its own kernel in between is tried on the device
//! itself, in `capsa-virtio`.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use capsa::test_utils::{self, Shell};
use capsa::{CachePolicy, Error, ShareAccess, ShareSpec, VmExit};

fn share(host: &Path, guest: &str, access: ShareAccess) -> ShareSpec {
    ShareSpec {
        access,
        // So that nothing here waits for what the guest remembers.
        cache: CachePolicy::None,
        ..ShareSpec::new(host, guest)
    }
}

#[tokio::test]
async fn shares_are_where_the_user_wanted_them_and_read_only_ones_refuse_changes() {
    let folder = tempfile::tempdir().unwrap();
    let (work, docs) = (folder.path().join("work"), folder.path().join("docs"));
    for directory in [&work, &docs] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("from-host"), "hello\n").unwrap();
    }
    let builder = test_utils::vm()
        .await
        .share(share(&docs, "/docs", ShareAccess::ReadOnly))
        .share(share(&work, "/deep/my work:1", ShareAccess::ReadWrite));
    let mut shell = Shell::start(builder).await;

    let read = shell
        .run("cd '/deep/my work:1' && cat from-host /docs/from-host && grep -c virtiofs /proc/mounts")
        .await;
    let refused = shell
        .run(
            "for c in 'touch /docs/new' 'rm -f /docs/from-host' 'mkdir /docs/d' 'chmod 777 /docs/from-host' \
             'mv /docs/from-host /docs/x' 'ln -s x /docs/l' 'dd if=/dev/zero of=/docs/from-host count=1'; \
             do $c 2>/dev/null && echo \"done: $c\"; done; mount -o remount,rw /docs; \
             touch /docs/again 2>/dev/null && echo 'remounted'; true",
        )
        .await;
    shell
        .run(
            "seq 1000 > numbers && mkdir d && mv numbers d/n && ln d/n d/hard && ln -s n d/soft && \
             chmod 640 d/n && echo more >> d/hard && rm from-host && sync",
        )
        .await;
    fs::write(work.join("later"), "seen\n").unwrap();
    let later = shell.run("cat later && cat d/soft | wc -l").await;
    shell.send("poweroff -f").await;
    let exit = shell.vm.wait().await;

    assert_eq!(read, "hello\nhello\n2");
    assert_eq!(refused, "");
    assert_eq!(later, "seen\n1001");
    assert_eq!(exit, VmExit::PoweredOff);
    assert_eq!(
        fs::read_to_string(docs.join("from-host")).unwrap(),
        "hello\n"
    );
    assert_eq!(fs::read_dir(&docs).unwrap().count(), 1);
    assert!(!work.join("from-host").exists());
    let numbers = fs::metadata(work.join("d/n")).unwrap();
    assert_eq!(
        (numbers.nlink(), numbers.permissions().mode() & 0o777),
        (2, 0o640)
    );
    assert_eq!(fs::read_link(work.join("d/soft")).unwrap(), Path::new("n"));
}

#[tokio::test]
async fn links_do_not_lead_out_of_a_share() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, "secret\n").unwrap();
    symlink("../secret", inside.join("relative")).unwrap();
    symlink(&secret, inside.join("absolute")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    let builder = test_utils::vm()
        .await
        .share(share(&inside, "/mnt", ShareAccess::ReadWrite));
    let mut shell = Shell::start(builder).await;

    let seen = shell
        .run(
            "cd /mnt; ln -s ../secret mine; for l in relative absolute up/secret mine ../secret; do \
             cat $l 2>/dev/null; echo overwritten > $l.new; done; \
             echo overwritten > relative; echo overwritten > absolute; \
             i=0; while [ $i -lt 20 ]; do ln -sfn ../secret swap; rm swap; mkdir swap; \
             cat swap/secret 2>/dev/null; rmdir swap; i=$((i+1)); done; true",
        )
        .await;

    assert!(!seen.contains("secret\n"), "{seen}");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret\n");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn many_small_files_survive_being_unpacked_moved_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let builder =
        test_utils::vm()
            .await
            .share(share(folder.path(), "/mnt", ShareAccess::ReadWrite));
    let mut shell = Shell::start(builder).await;

    shell
        .run(
            "cd /tmp && mkdir t && for i in $(seq 60); do echo $i > t/$i; done && tar c t > t.tar && \
             cd /mnt && tar x -f /tmp/t.tar && mv t u && tar c u | tar t | wc -l && \
             for i in $(seq 1 2 59); do rm u/$i; done && diff /tmp/t/60 u/60 && sync",
        )
        .await;

    let names: Vec<_> = fs::read_dir(folder.path().join("u")).unwrap().collect();
    assert_eq!(names.len(), 30);
    assert_eq!(
        fs::read_to_string(folder.path().join("u/42")).unwrap(),
        "42\n"
    );
}

/// In the lab the host's directory is one whose places are counts of entries (tmpfs of Linux 6.1).
#[tokio::test]
async fn files_that_are_deleted_while_their_directory_is_read_are_all_found() {
    let host = tempfile::tempdir().unwrap();
    let share = share(host.path(), "/shared", ShareAccess::ReadWrite);
    let mut shell = Shell::start(test_utils::vm().await.share(share)).await;

    shell
        .run("cd /shared && seq 300 | sed s/^/entry-with-a-rather-long-name-/ | xargs touch")
        .await;
    let made = fs::read_dir(host.path()).unwrap().count();
    shell.run("find /shared -type f -exec rm {} \\;").await;

    assert_eq!(made, 300);
    assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn shares_that_cannot_be_used_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let good = || ShareSpec::new(folder.path(), "/mnt");

    for (path, reason) in [
        (folder.path().join("missing"), "no such directory"),
        (file, "not a directory"),
    ] {
        let builder = test_utils::vm().await.share(ShareSpec::new(path, "/mnt"));
        let error = builder.build().await.err().unwrap();
        let text = error.to_string();
        assert!(matches!(error, Error::File { .. }), "{text}");
        assert!(text.contains(reason), "{text}");
    }
    let twice = test_utils::vm().await.share(good()).share(good());
    let error = twice.build().await.err().unwrap();
    assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
}
