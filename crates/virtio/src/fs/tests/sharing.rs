//! Options: who owns what, who may change what, what is remembered.

use super::super::abi::{init, setattr};
use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn read_only_share_refuses_every_change() {
    let mut guest = Guest::with(FsOptions {
        read_only: true,
        ..FsOptions::new("ro")
    });
    fs::write(guest.host("a"), "content").unwrap();
    let node = guest.lookup(ROOT, "a").unwrap().node;
    let handle = guest.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"content");
    let refused = Some(Errno::ROFS);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC] {
        assert_eq!(guest.open(node, flags).err(), refused);
    }
    assert_eq!(guest.write(node, handle, 0, b"x").err(), refused);
    assert_eq!(guest.create(ROOT, "b", libc::O_RDONLY).err(), refused);
    assert_eq!(guest.mkdir(ROOT, "b", 0o755).err(), refused);
    assert_eq!(guest.symlink(ROOT, "b", "a").err(), refused);
    assert_eq!(guest.link(node, ROOT, "b").err(), refused);
    assert_eq!(guest.unlink(ROOT, "a").err(), refused);
    assert_eq!(guest.rename(ROOT, "a", ROOT, "b", 0).err(), refused);
    let set = Set {
        valid: setattr::MODE,
        mode: 0o777,
        ..Set::default()
    };
    assert_eq!(guest.setattr(node, set).err(), refused);
    let xattr = [fields(&[1, 0]), string("user.x"), b"x".to_vec()].concat();
    assert_eq!(guest.call(opcode::SETXATTR, node, &xattr).err(), refused);
    assert_eq!(
        guest
            .call(opcode::REMOVEXATTR, node, &string("user.x"))
            .err(),
        refused
    );
    let temporary = [fields(&[libc::O_RDWR as u32, 0o600, 0, 0]), string("")].concat();
    assert_eq!(guest.call(opcode::TMPFILE, ROOT, &temporary).err(), refused);
    let range = [longs(&[handle, 0, 4096]), fields(&[0, 0])].concat();
    assert_eq!(guest.call(opcode::FALLOCATE, node, &range).err(), refused);
    let copy = longs(&[handle, 0, node, handle, 0, 10, 0]);
    assert_eq!(
        guest.call(opcode::COPY_FILE_RANGE, node, &copy).err(),
        refused
    );
    let special = [fields(&[libc::S_IFIFO, 0, 0, 0]), string("b")].concat();
    assert_eq!(guest.call(opcode::MKNOD, ROOT, &special).err(), refused);
    assert_eq!(guest.call(opcode::RMDIR, ROOT, &string("a")).err(), refused);
    assert_eq!(fs::read(guest.host("a")).unwrap(), b"content");
}

#[test]
fn hidden_file_is_not_there_by_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    fs::write(&path, "secret").unwrap();
    let mut guest = Guest::with(FsOptions {
        read_only: true,
        filter: Filter::new(false, &[path.clone(), folder.path().join("missing")]),
        ..FsOptions::new("filtered")
    });
    fs::hard_link(&path, guest.host("alias")).unwrap();
    fs::write(guest.host("open"), "for all").unwrap();

    assert_eq!(guest.lookup(ROOT, "alias").err(), Some(Errno::NOENT));
    assert!(guest.lookup(ROOT, "open").is_ok());
    let listed = guest.list(ROOT, true);
    assert!(listed.iter().all(|(name, _)| name != "alias"), "{listed:?}");
}

#[test]
fn public_share_has_only_what_everybody_may_read() {
    let mut guest = Guest::with(FsOptions {
        read_only: true,
        filter: Filter::new(true, &[]),
        ..FsOptions::new("public")
    });
    let modes = [("shadow", 0o640), ("passwd", 0o644)];
    for (name, mode) in modes {
        fs::write(guest.host(name), name).unwrap();
        fs::set_permissions(guest.host(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let directories = [("private", 0o700), ("shared", 0o755)];
    for (name, mode) in directories {
        fs::create_dir(guest.host(name)).unwrap();
        fs::set_permissions(guest.host(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let _socket = std::os::unix::net::UnixListener::bind(guest.host("socket")).unwrap();

    for (name, expected) in [
        ("shadow", Some(Errno::NOENT)),
        ("passwd", None),
        ("private", Some(Errno::NOENT)),
        ("shared", None),
        ("socket", Some(Errno::NOENT)),
    ] {
        assert_eq!(guest.lookup(ROOT, name).err(), expected, "{name}");
    }
}

#[test]
fn mapped_owner_is_root_for_our_own_and_nobody_for_others() {
    let mut guest = Guest::new();
    let (entry, _) = guest.create(ROOT, "mine", libc::O_RDWR).unwrap();
    assert_eq!((entry.uid, entry.gid), (0, 0));
    let both = setattr::UID | setattr::GID;
    assert!(
        guest
            .setattr(
                entry.node,
                Set {
                    valid: both,
                    ..Set::default()
                }
            )
            .is_ok()
    );
    let other = Set {
        valid: both,
        uid: 1000,
        gid: 1000,
        ..Set::default()
    };
    assert_eq!(guest.setattr(entry.node, other).err(), Some(Errno::PERM));
    fs::write(guest.host("theirs"), "").unwrap();
    if std::os::unix::fs::chown(guest.host("theirs"), Some(1234), Some(1234)).is_ok() {
        let entry = guest.lookup(ROOT, "theirs").unwrap();
        assert_eq!((entry.uid, entry.gid), (65_534, 65_534));
    }
}

#[test]
fn squashed_owner_is_always_the_same_and_changes_are_forgotten() {
    let owners = Owners::Squash {
        uid: 1000,
        gid: 100,
    };
    let mut guest = Guest::with(FsOptions {
        owners,
        ..FsOptions::new("squash")
    });
    let (entry, _) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    assert_eq!((entry.uid, entry.gid), (1000, 100));
    let set = Set {
        valid: setattr::UID,
        uid: 7,
        ..Set::default()
    };
    assert_eq!(guest.setattr(entry.node, set).unwrap().uid, 1000);
}

#[test]
fn passed_through_owner_is_the_guests_user() {
    let mut guest = Guest::with(FsOptions {
        owners: Owners::Passthrough,
        ..FsOptions::new("pass")
    });
    // Giving files away needs root on the host; without it the guest gets the host's refusal.
    let root = rustix::process::geteuid().is_root();
    (guest.uid, guest.gid) = (1234, 5678);
    let made = guest.create(ROOT, "a", libc::O_RDWR);
    assert_eq!(made.is_ok(), root);
    if let Ok((entry, _)) = made {
        assert_eq!((entry.uid, entry.gid), (1234, 5678));
        let metadata = fs::metadata(guest.host("a")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
        let set = Set {
            valid: setattr::UID,
            uid: 7,
            ..Set::default()
        };
        assert_eq!(guest.setattr(entry.node, set).unwrap().uid, 7);
        let entry = guest.mkdir(ROOT, "d", 0o2755).unwrap();
        assert_eq!((entry.uid, entry.mode & 0o7777), (1234, 0o2755));
    }
}

#[test]
fn caching_follows_the_policy() {
    for (cache, seconds, writeback) in [
        (CachePolicy::Never, 0, false),
        (CachePolicy::Auto, 1, false),
        (CachePolicy::Always, 86_400, true),
    ] {
        let mut guest = Guest::with(FsOptions {
            cache,
            ..FsOptions::new("cache")
        });
        let flags = guest.init(u32::MAX);
        assert_eq!(flags & init::WRITEBACK_CACHE != 0, writeback);
        assert_eq!(flags & init::AUTO_INVAL_DATA == 0, writeback);
        fs::write(guest.host("a"), "x").unwrap();
        let reply = guest.call(opcode::LOOKUP, ROOT, &string("a")).unwrap();
        assert_eq!(reply[16..24], u64::to_le_bytes(seconds));
        let node = Guest::entry(&reply).node;
        let opened = guest.call(opcode::OPEN, node, &fields(&[0, 0])).unwrap();
        assert_eq!(opened[8] & 2 != 0, writeback);
    }
}

#[test]
fn writeback_reads_what_it_writes_and_places_appends_itself() {
    let mut guest = Guest::with(FsOptions {
        cache: CachePolicy::Always,
        ..FsOptions::new("cache")
    });
    fs::write(guest.host("a"), "0123456789").unwrap();
    let node = guest.lookup(ROOT, "a").unwrap().node;
    let handle = guest.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    assert_eq!(guest.read(node, handle, 0, 4).unwrap(), b"0123");
    guest.write(node, handle, 2, b"xx").unwrap();
    assert_eq!(fs::read(guest.host("a")).unwrap(), b"01xx456789");
}

#[test]
fn state_moved_to_another_share_keeps_numbers_and_handles() {
    let mut guest = Guest::new();
    guest.mkdir(ROOT, "d", 0o755).unwrap();
    let directory = guest.lookup(ROOT, "d").unwrap().node;
    let (entry, handle) = guest.create(directory, "a", libc::O_RDWR).unwrap();
    guest.write(entry.node, handle, 0, b"before").unwrap();
    let (gone, _) = guest.create(ROOT, "gone", libc::O_RDWR).unwrap();
    guest.unlink(ROOT, "gone").unwrap();
    guest.rename(ROOT, "d", ROOT, "renamed", 0).unwrap();
    guest.harness.mount.pause().unwrap();
    let state = guest.harness.mount.save().unwrap();

    let root = FsOptions::open_directory(&guest.host("")).unwrap();
    let harness = Harness::new(Fs::new(root, FsOptions::new("share")).unwrap());
    harness.mount.restore(&state).unwrap();
    harness.activate().unwrap();
    let mut other = Guest { harness, ..guest };
    other.write(entry.node, handle, 6, b" after").unwrap();
    assert_eq!(fs::read(other.host("renamed/a")).unwrap(), b"before after");
    assert_eq!(other.lookup(directory, "a").unwrap().node, entry.node);
    assert_eq!(other.getattr(gone.node).err(), Some(Errno::STALE));
    let (new, _) = other.create(ROOT, "new", libc::O_RDWR).unwrap();
    assert!(new.node > gone.node);
}

#[test]
fn state_with_paths_that_lead_out_names_nothing() {
    let guest = Guest::new();
    std::os::unix::fs::symlink("..", guest.host("up")).unwrap();
    let path = |path: &str| path.as_bytes().to_vec();
    let paths = ["../secret", "/etc/passwd", "up/secret", "up"];
    let nodes = (10..)
        .zip(paths)
        .map(|(id, name)| (id, path(name), 1))
        .collect();
    let state = FsState {
        next_node: 20,
        nodes,
        ..FsState::default()
    };
    let state = crate::DeviceState::encode(26, 1, &state).unwrap();
    let root = FsOptions::open_directory(&guest.host("")).unwrap();
    let harness = Harness::new(Fs::new(root, FsOptions::new("share")).unwrap());
    harness.mount.restore(&state).unwrap();
    harness.activate().unwrap();
    let mut other = Guest { harness, ..guest };
    for node in 10..13 {
        assert_eq!(other.getattr(node).err(), Some(Errno::STALE), "{node}");
    }
    // The link itself is in the share, and stays a link.
    assert!(
        other
            .getattr(13)
            .is_ok_and(|entry| entry.mode & libc::S_IFMT == libc::S_IFLNK)
    );
}

#[test]
fn configuration_tells_tag_and_queues() {
    let guest = Guest::with(FsOptions {
        queues: 3,
        ..FsOptions::new("a-share")
    });
    let mut config = [0xff; 44];
    guest.harness.mount.read_config(0, &mut config);
    assert_eq!(&config[..8], b"a-share\0");
    assert_eq!(config[36..40], [3, 0, 0, 0]);
    assert_eq!(config[40..], [0; 4]);
    assert_eq!(guest.harness.mount.queue_max_sizes().len(), 4);
}

#[test]
fn options_out_of_range_are_rejected() {
    let folder = TempDir::new().unwrap();
    let new =
        |options| Fs::new(FsOptions::open_directory(folder.path()).unwrap(), options).map(|_| ());
    for tag in ["", "a\0b", &"x".repeat(37)] {
        assert!(matches!(new(FsOptions::new(tag)), Err(FsError::Tag(_))));
    }
    for queues in [0, 9] {
        let options = FsOptions {
            queues,
            ..FsOptions::new("a")
        };
        assert!(matches!(new(options), Err(FsError::Queues(_))));
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let open = |path: &Path| FsOptions::open_directory(path).map(|_| ());
    assert!(matches!(open(&file), Err(FsError::NotADirectory(_))));
    assert!(matches!(
        open(&folder.path().join("no")),
        Err(FsError::Missing(_))
    ));
}
