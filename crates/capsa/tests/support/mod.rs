//! What tests of sandboxes share.
#![allow(dead_code, reason = "each test program uses a part")]

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// A root directory with BusyBox in it.
pub(crate) fn busybox_root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["bin", "etc", "tmp", "root"] {
        fs::create_dir(root.path().join(directory)).unwrap();
    }
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).unwrap();
    for command in ["sh", "cat", "echo", "ls", "rm", "sleep", "id", "true"] {
        symlink("busybox", root.path().join("bin").join(command)).unwrap();
    }
    fs::write(
        root.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\n",
    )
    .unwrap();
    root
}

/// Links, modes, times and names that are easily lost.
pub(crate) fn odd_tree(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::write(root.join("a/file"), vec![7; 300_000]).unwrap();
    fs::write(root.join("zero"), "").unwrap();
    fs::hard_link(root.join("a/file"), root.join("a/b/other-name")).unwrap();
    symlink("../a/file", root.join("a/link")).unwrap();
    symlink("/nowhere/at/all", root.join("dangling")).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not-\xff-utf8")), "odd").unwrap();
    fs::write(root.join("set-id"), "x").unwrap();
    fs::set_permissions(root.join("set-id"), Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o1711)).unwrap();
    let file = fs::File::options()
        .write(true)
        .open(root.join("zero"))
        .unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789))
        .unwrap();
}

/// Compares kinds, modes, times, content, and which names are one file.
pub(crate) fn assert_same_tree(expected: &Path, found: &Path) {
    let (left, right) = (
        fs::symlink_metadata(expected).unwrap(),
        fs::symlink_metadata(found).unwrap_or_else(|error| panic!("{}: {error}", found.display())),
    );
    let name = expected.display();
    assert_eq!(left.file_type(), right.file_type(), "{name}");
    assert_eq!(left.nlink(), right.nlink(), "{name}");
    if left.is_symlink() {
        assert_eq!(
            fs::read_link(expected).unwrap(),
            fs::read_link(found).unwrap()
        );
        return;
    }
    assert_eq!(left.mode(), right.mode(), "{name}");
    assert_eq!(
        (left.mtime(), left.mtime_nsec()),
        (right.mtime(), right.mtime_nsec()),
        "{name}"
    );
    if left.is_file() {
        assert!(
            fs::read(expected).unwrap() == fs::read(found).unwrap(),
            "{name}"
        );
        return;
    }
    let names = |directory: &Path| {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(expected), names(found), "{name}");
    for entry in names(expected) {
        assert_same_tree(&expected.join(&entry), &found.join(&entry));
    }
}

/// Runs all of them at once.
pub(crate) async fn join_all<F: Future<Output = ()>>(futures: impl Iterator<Item = F>) {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        match futures.is_empty() {
            true => std::task::Poll::Ready(()),
            false => std::task::Poll::Pending,
        }
    })
    .await;
}
