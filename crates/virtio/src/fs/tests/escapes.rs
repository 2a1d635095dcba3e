//! A guest that wants to get at `secret`, which lies beside the shared directory.

use std::os::unix::fs::symlink;

use super::super::abi::setattr;
use super::*;

const OPENS: [i32; 4] = [
    libc::O_RDONLY,
    libc::O_RDWR,
    libc::O_WRONLY | libc::O_TRUNC,
    libc::O_RDWR | libc::O_NOFOLLOW | libc::O_CREAT,
];

#[test]
fn names_that_lead_up_or_further_are_refused() {
    let mut guest = Guest::new();
    let directory = guest.mkdir(ROOT, "d", 0o755).unwrap().node;
    for name in [
        "..",
        ".",
        "../secret",
        "/etc/passwd",
        "d/../../secret",
        "/",
        "a/b",
    ] {
        for parent in [ROOT, directory] {
            assert_eq!(
                guest.lookup(parent, name).err(),
                Some(Errno::INVAL),
                "{name}"
            );
            assert!(guest.create(parent, name, libc::O_RDWR).is_err());
            assert!(guest.mkdir(parent, name, 0o755).is_err());
            assert!(guest.symlink(parent, name, "x").is_err());
            assert!(guest.link(ROOT, parent, name).is_err());
            assert!(guest.unlink(parent, name).is_err());
            assert!(guest.call(opcode::RMDIR, parent, &string(name)).is_err());
            assert!(guest.rename(parent, name, ROOT, "x", 0).is_err());
            assert!(guest.rename(ROOT, "d", parent, name, 0).is_err());
            let node = [fields(&[libc::S_IFREG, 0, 0, 0]), string(name)].concat();
            assert!(guest.call(opcode::MKNOD, parent, &node).is_err());
        }
    }
    guest.assert_untouched();
}

#[test]
fn names_that_are_cut_off_or_too_long_are_refused() {
    let mut guest = Guest::new();
    assert_eq!(
        guest.call(opcode::LOOKUP, ROOT, b"no end").err(),
        Some(Errno::INVAL)
    );
    assert_eq!(
        guest.call(opcode::LOOKUP, ROOT, b"").err(),
        Some(Errno::INVAL)
    );
    assert_eq!(guest.lookup(ROOT, "").err(), Some(Errno::NOENT));
    assert_eq!(
        guest.lookup(ROOT, &"x".repeat(256)).err(),
        Some(Errno::NAMETOOLONG)
    );
    // What follows the NUL is not part of the name.
    fs::write(guest.host("a"), "").unwrap();
    assert!(
        guest
            .call(opcode::LOOKUP, ROOT, b"a\0/../../secret\0")
            .is_ok()
    );
}

#[test]
fn link_that_leads_out_is_told_but_never_followed() {
    let mut guest = Guest::new();
    let absolute = guest.secret().into_os_string().into_string().unwrap();
    for (name, target) in [
        ("relative", "../secret"),
        ("absolute", &absolute),
        ("up", ".."),
    ] {
        let entry = guest.symlink(ROOT, name, target).unwrap();
        assert_eq!(entry.mode & libc::S_IFMT, libc::S_IFLNK);
        let read = guest.call(opcode::READLINK, entry.node, b"").unwrap();
        assert_eq!(read, target.as_bytes());
        for flags in OPENS {
            assert!(guest.open(entry.node, flags).is_err());
            assert!(guest.create(ROOT, name, flags).is_err());
        }
        assert!(guest.opendir(entry.node).is_err());
        assert!(guest.lookup(entry.node, "secret").is_err());
        assert!(guest.create(entry.node, "new", libc::O_RDWR).is_err());
        for valid in [setattr::SIZE, setattr::MODE] {
            assert!(
                guest
                    .setattr(
                        entry.node,
                        Set {
                            valid,
                            ..Set::default()
                        }
                    )
                    .is_err()
            );
        }
        let set = Set {
            valid: setattr::MTIME,
            mtime: 1,
            ..Set::default()
        };
        let _ = guest.setattr(entry.node, set);
        let xattr = [fields(&[1, 0]), string("user.x"), b"x".to_vec()].concat();
        assert!(guest.call(opcode::SETXATTR, entry.node, &xattr).is_err());
        assert_eq!(
            guest
                .link(entry.node, ROOT, &format!("{name}-2"))
                .unwrap()
                .node,
            entry.node
        );
    }
    let metadata = fs::metadata(guest.secret()).unwrap();
    assert!(metadata.mtime() > 1_000_000_000);
    assert_eq!(metadata.nlink(), 1);
    guest.assert_untouched();
}

#[test]
fn directory_swapped_for_a_link_between_lookup_and_use_stays_the_directory() {
    let mut guest = Guest::new();
    let directory = guest.mkdir(ROOT, "d", 0o755).unwrap().node;
    fs::write(guest.host("d/secret"), "inside").unwrap();
    fs::rename(guest.host("d"), guest.host("moved")).unwrap();
    symlink("..", guest.host("d")).unwrap();

    let found = guest.lookup(directory, "secret").unwrap();
    let handle = guest.open(found.node, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(found.node, handle, 0, 100).unwrap(), b"inside");
    guest.create(directory, "new", libc::O_RDWR).unwrap();
    assert!(guest.host("moved/new").exists());
    guest.unlink(directory, "secret").unwrap();
    guest.assert_untouched();
    assert!(guest.walk("d/secret").is_err());
}

#[test]
fn file_swapped_for_a_link_between_lookup_and_open_is_still_the_file() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "inside").unwrap();
    let node = guest.lookup(ROOT, "a").unwrap().node;
    fs::remove_file(guest.host("a")).unwrap();
    symlink("../secret", guest.host("a")).unwrap();
    let handle = guest.open(node, libc::O_RDWR).unwrap();
    assert_eq!(guest.read(node, handle, 0, 100).unwrap(), b"inside");
    guest.write(node, handle, 0, b"broken").unwrap();
    guest
        .setattr(
            node,
            Set {
                valid: setattr::SIZE,
                ..Set::default()
            },
        )
        .unwrap();
    guest
        .setattr(
            node,
            Set {
                valid: setattr::MODE,
                mode: 0o777,
                ..Set::default()
            },
        )
        .unwrap();
    assert_eq!(mode(&guest.secret()) & 0o111, 0);
    guest.assert_untouched();
}

#[test]
fn numbers_that_were_not_given_out_name_nothing() {
    let mut guest = Guest::new();
    for node in [0, 2, 3, 1 << 40, u64::MAX] {
        assert_eq!(guest.getattr(node).err(), Some(Errno::STALE));
        assert_eq!(guest.open(node, libc::O_RDWR).err(), Some(Errno::STALE));
        assert_eq!(guest.opendir(node).err(), Some(Errno::STALE));
        assert_eq!(guest.lookup(node, "secret").err(), Some(Errno::STALE));
        assert_eq!(guest.link(node, ROOT, "x").err(), Some(Errno::STALE));
        fs::write(guest.host("a"), "").unwrap();
        assert_eq!(
            guest.rename(ROOT, "a", node, "x", 0).err(),
            Some(Errno::STALE)
        );
        guest.forget(node, u64::MAX);
    }
    assert!(guest.getattr(ROOT).is_ok());
}

#[test]
fn number_of_a_file_that_was_replaced_does_not_name_the_new_one() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "old").unwrap();
    let old = guest.lookup(ROOT, "a").unwrap().node;
    guest.unlink(ROOT, "a").unwrap();
    guest.forget(old, 1);
    fs::write(guest.host("a"), "new").unwrap();
    let new = guest.lookup(ROOT, "a").unwrap().node;
    assert_ne!(old, new);
    assert_eq!(guest.open(old, libc::O_RDONLY).err(), Some(Errno::STALE));
}

#[test]
fn handles_are_good_for_their_own_file_only() {
    let mut guest = Guest::new();
    let (one, handle) = guest.create(ROOT, "one", libc::O_RDWR).unwrap();
    let (two, _) = guest.create(ROOT, "two", libc::O_RDWR).unwrap();
    let directory = guest.opendir(ROOT).unwrap();
    for wrong in [handle, directory, 0, 99, u64::MAX] {
        assert_eq!(guest.read(two.node, wrong, 0, 10).err(), Some(Errno::BADF));
        assert_eq!(
            guest.write(two.node, wrong, 0, b"x").err(),
            Some(Errno::BADF)
        );
        let body = [longs(&[wrong]), fields(&[0, 0]), longs(&[0])].concat();
        assert_eq!(
            guest.call(opcode::RELEASE, two.node, &body).err(),
            Some(Errno::BADF)
        );
        let set = Set {
            valid: setattr::SIZE | setattr::FH,
            handle: wrong,
            ..Set::default()
        };
        assert_eq!(guest.setattr(two.node, set).err(), Some(Errno::BADF));
    }
    let copy = longs(&[handle, 0, two.node, handle, 0, 10, 0]);
    assert_eq!(
        guest.call(opcode::COPY_FILE_RANGE, one.node, &copy).err(),
        Some(Errno::BADF)
    );
    assert!(guest.write(one.node, handle, 0, b"x").is_ok());
    assert_eq!(guest.read(ROOT, directory, 0, 10).err(), Some(Errno::ISDIR));
}

#[test]
fn everything_is_forgotten_when_the_guest_begins_anew() {
    let mut guest = Guest::new();
    let (entry, handle) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    guest.init(0);
    assert_eq!(guest.getattr(entry.node).err(), Some(Errno::STALE));
    assert_eq!(
        guest.read(entry.node, handle, 0, 1).err(),
        Some(Errno::BADF)
    );
    let again = guest.lookup(ROOT, "a").unwrap();
    assert_ne!(again.node, entry.node);
}
