use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use super::super::abi::setattr;
use super::*;

#[test]
fn file_of_the_host_is_found_and_read() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "hello").unwrap();
    let entry = guest.lookup(ROOT, "a").unwrap();
    assert_eq!(
        (entry.size, entry.nlink, entry.mode & libc::S_IFMT),
        (5, 1, libc::S_IFREG)
    );
    let handle = guest.open(entry.node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.read(entry.node, handle, 0, 100).unwrap(), b"hello");
    assert_eq!(guest.read(entry.node, handle, 4, 100).unwrap(), b"o");
    assert_eq!(guest.read(entry.node, handle, 5, 100).unwrap(), b"");
    assert_eq!(guest.lookup(ROOT, "b").err(), Some(Errno::NOENT));
}

#[test]
fn file_made_by_the_guest_has_its_content_and_mode_on_the_host() {
    let mut guest = Guest::new();
    let (entry, handle) = guest.create_mode(ROOT, "a", libc::O_RDWR, 0o4666).unwrap();
    assert_eq!(mode(&guest.host("a")), 0o4666);
    assert_eq!(guest.write(entry.node, handle, 0, b"data").unwrap(), 4);
    assert_eq!(guest.write(entry.node, handle, 1 << 33, b"far").unwrap(), 3);
    let metadata = fs::metadata(guest.host("a")).unwrap();
    assert_eq!(metadata.len(), (1 << 33) + 3);
    assert!(metadata.blocks() < 100);
    assert_eq!(guest.getattr(entry.node).unwrap().size, (1 << 33) + 3);
    assert_eq!(
        guest.create(ROOT, "a", libc::O_EXCL).err(),
        Some(Errno::EXIST)
    );
    let (again, handle) = guest
        .create(ROOT, "a", libc::O_WRONLY | libc::O_TRUNC)
        .unwrap();
    assert_eq!(again.node, entry.node);
    guest.write(again.node, handle, 0, b"new").unwrap();
    assert_eq!(fs::read(guest.host("a")).unwrap(), b"new");
}

#[test]
fn file_appended_to_grows_at_its_end() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "one").unwrap();
    let node = guest.lookup(ROOT, "a").unwrap().node;
    let handle = guest.open(node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    fs::OpenOptions::new()
        .append(true)
        .open(guest.host("a"))
        .unwrap();
    guest.write(node, handle, 0, b"two").unwrap();
    assert_eq!(fs::read(guest.host("a")).unwrap(), b"onetwo");
}

#[test]
fn file_without_a_name_lives_until_closed() {
    let mut guest = Guest::new();
    let (entry, handle) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    guest.unlink(ROOT, "a").unwrap();
    guest.write(entry.node, handle, 0, b"still here").unwrap();
    assert_eq!(
        guest.read(entry.node, handle, 0, 100).unwrap(),
        b"still here"
    );
    assert_eq!(guest.getattr(entry.node).unwrap().nlink, 0);
}

#[test]
fn temporary_file_gets_a_name_by_a_link() {
    let mut guest = Guest::new();
    let body = [fields(&[libc::O_RDWR as u32, 0o600, 0, 0]), string("")].concat();
    let reply = guest.call(opcode::TMPFILE, ROOT, &body).unwrap();
    let node = Guest::entry(&reply).node;
    let handle = u64::from_le_bytes(reply[128..136].try_into().unwrap());
    guest.write(node, handle, 0, b"draft").unwrap();
    assert!(
        guest
            .list(ROOT, false)
            .iter()
            .all(|(name, _)| name.starts_with('.'))
    );
    assert_eq!(guest.link(node, ROOT, "final").unwrap().node, node);
    assert_eq!(fs::read(guest.host("final")).unwrap(), b"draft");
}

#[test]
fn hard_link_is_one_file_with_two_names() {
    let mut guest = Guest::new();
    let (entry, _) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    let linked = guest.link(entry.node, ROOT, "b").unwrap();
    assert_eq!(
        (linked.node, linked.inode, linked.nlink),
        (entry.node, entry.inode, 2)
    );
    let directory = guest.mkdir(ROOT, "d", 0o755).unwrap();
    assert_eq!(
        guest.link(directory.node, ROOT, "e").err(),
        Some(Errno::PERM)
    );
}

#[test]
fn rename_replaces_exchanges_and_refuses_as_asked() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "a").unwrap();
    fs::write(guest.host("b"), "b").unwrap();
    let directory = guest.mkdir(ROOT, "d", 0o755).unwrap().node;
    assert_eq!(guest.rename(ROOT, "a", ROOT, "b", 1), Err(Errno::EXIST));
    guest.rename(ROOT, "a", ROOT, "b", 2).unwrap();
    assert_eq!(fs::read(guest.host("a")).unwrap(), b"b");
    guest.rename(ROOT, "a", directory, "c", 0).unwrap();
    assert_eq!(fs::read(guest.host("d/c")).unwrap(), b"b");
    guest.rename(ROOT, "b", directory, "c", 0).unwrap();
    assert_eq!(fs::read(guest.host("d/c")).unwrap(), b"a");
    assert_eq!(guest.rename(ROOT, "d", ROOT, "e", 4), Err(Errno::INVAL));
    assert_eq!(guest.rename(ROOT, "d", ROOT, "e", 64), Err(Errno::INVAL));
    let body = [longs(&[ROOT]), string("d"), string("e")].concat();
    guest.call(opcode::RENAME, ROOT, &body).unwrap();
    assert_eq!(guest.walk("e/c").unwrap().size, 1);
}

#[test]
fn directories_are_made_and_removed_when_empty() {
    let mut guest = Guest::new();
    let made = guest.mkdir(ROOT, "d", 0o1777).unwrap();
    assert_eq!(mode(&guest.host("d")), 0o1777);
    guest.create(made.node, "a", 0).unwrap();
    assert_eq!(
        guest.call(opcode::RMDIR, ROOT, &string("d")).err(),
        Some(Errno::NOTEMPTY)
    );
    assert_eq!(guest.unlink(ROOT, "d").err(), Some(Errno::ISDIR));
    guest.unlink(made.node, "a").unwrap();
    guest.call(opcode::RMDIR, ROOT, &string("d")).unwrap();
    assert!(!guest.host("d").exists());
}

#[test]
fn directory_of_many_entries_is_listed_once_each() {
    let mut guest = Guest::new();
    for at in 0..3000 {
        fs::write(guest.host(&format!("file-{at}")), "").unwrap();
    }
    for plus in [false, true] {
        let mut names = guest.list(ROOT, plus);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 3002);
        let known = names.iter().filter(|(_, id)| *id != 0).count();
        assert_eq!(known, if plus { 3000 } else { 0 });
    }
}

#[test]
fn entries_of_readdirplus_are_known_by_their_numbers() {
    let mut guest = Guest::new();
    fs::write(guest.host("a"), "123").unwrap();
    let list = guest.list(ROOT, true);
    let (_, id) = list.iter().find(|(name, _)| name == "a").unwrap();
    assert_eq!(guest.getattr(*id).unwrap().size, 3);
    assert_eq!(guest.lookup(ROOT, "a").unwrap().node, *id);
    guest.forget(*id, 1);
    assert!(guest.getattr(*id).is_ok());
    guest.forget(*id, 1);
    assert_eq!(guest.getattr(*id).err(), Some(Errno::STALE));
}

#[test]
fn attributes_are_set() {
    let mut guest = Guest::new();
    let (entry, handle) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    guest.write(entry.node, handle, 0, b"0123456789").unwrap();
    let set = Set {
        valid: setattr::SIZE,
        size: 4,
        ..Set::default()
    };
    assert_eq!(guest.setattr(entry.node, set).unwrap().size, 4);
    let valid = setattr::SIZE | setattr::FH;
    let set = Set {
        valid,
        handle,
        size: 6,
        ..Set::default()
    };
    assert_eq!(guest.setattr(entry.node, set).unwrap().size, 6);
    let set = Set {
        valid: setattr::MODE,
        mode: 0o4711,
        ..Set::default()
    };
    assert_eq!(
        guest.setattr(entry.node, set).unwrap().mode & 0o7777,
        0o4711
    );
    let set = Set {
        valid: setattr::MTIME,
        mtime: 12345,
        ..Set::default()
    };
    guest.setattr(entry.node, set).unwrap();
    let metadata = fs::metadata(guest.host("a")).unwrap();
    assert_eq!((metadata.mtime(), metadata.len()), (12345, 6));
    let set = Set {
        valid: setattr::MTIME_NOW,
        ..Set::default()
    };
    guest.setattr(entry.node, set).unwrap();
    assert!(fs::metadata(guest.host("a")).unwrap().mtime() > 1_000_000_000);
    let set = Set {
        valid: setattr::KILL_SUIDGID,
        ..Set::default()
    };
    assert_eq!(guest.setattr(entry.node, set).unwrap().mode & 0o7777, 0o711);
}

#[test]
fn extended_attributes_of_the_user_are_kept_and_others_refused() {
    let mut guest = Guest::new();
    let (entry, _) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    let set = |name: &str, value: &[u8]| {
        [
            fields(&[value.len() as u32, 0]),
            string(name),
            value.to_vec(),
        ]
        .concat()
    };
    guest
        .call(opcode::SETXATTR, entry.node, &set("user.mine", b"value"))
        .unwrap();
    let get = |size: u32, name: &str| [fields(&[size, 0]), string(name)].concat();
    let value = guest.call(opcode::GETXATTR, entry.node, &get(100, "user.mine"));
    assert_eq!(value.unwrap(), b"value");
    let size = guest
        .call(opcode::GETXATTR, entry.node, &get(0, "user.mine"))
        .unwrap();
    assert_eq!(size, longs(&[5]));
    let short = guest.call(opcode::GETXATTR, entry.node, &get(4, "user.mine"));
    assert_eq!(short.err(), Some(Errno::RANGE));
    let list = guest
        .call(opcode::LISTXATTR, entry.node, &fields(&[100, 0]))
        .unwrap();
    assert_eq!(list, b"user.mine\0");
    for name in [
        "security.capability",
        "trusted.overlay.opaque",
        "system.posix_acl_access",
        "",
    ] {
        assert!(
            guest
                .call(opcode::SETXATTR, entry.node, &set(name, b"x"))
                .is_err(),
            "{name}"
        );
        assert!(
            guest
                .call(opcode::GETXATTR, entry.node, &get(100, name))
                .is_err(),
            "{name}"
        );
    }
    guest
        .call(opcode::REMOVEXATTR, entry.node, &string("user.mine"))
        .unwrap();
    let gone = guest.call(opcode::GETXATTR, entry.node, &get(100, "user.mine"));
    assert_eq!(gone.err(), Some(Errno::NODATA));
}

#[test]
fn holes_are_found_punched_and_copied() {
    let mut guest = Guest::new();
    let (entry, handle) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    let seek =
        |offset: u64, whence: i32| [longs(&[handle, offset]), fields(&[whence as u32, 0])].concat();
    guest
        .write(entry.node, handle, 1 << 20, &[1; 65536])
        .unwrap();
    let data = guest
        .call(opcode::LSEEK, entry.node, &seek(0, libc::SEEK_DATA))
        .unwrap();
    assert_eq!(data, longs(&[1 << 20]));
    assert!(
        guest
            .call(opcode::LSEEK, entry.node, &seek(0, libc::SEEK_SET))
            .is_err()
    );
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u32;
    let body = [longs(&[handle, 1 << 20, 4096]), fields(&[punch, 0])].concat();
    guest.call(opcode::FALLOCATE, entry.node, &body).unwrap();
    let (copy, to) = guest.create(ROOT, "b", libc::O_RDWR).unwrap();
    let body = longs(&[handle, 1 << 20, copy.node, to, 0, 65536, 0]);
    let copied = guest
        .call(opcode::COPY_FILE_RANGE, entry.node, &body)
        .unwrap();
    assert_eq!(copied, longs(&[65536]));
    let content = fs::read(guest.host("b")).unwrap();
    assert_eq!(
        (content[0], content[4095], content[4096], content[65535]),
        (0, 0, 1, 1)
    );
}

#[test]
fn special_files_are_made_for_the_guest_but_not_opened_here() {
    let mut guest = Guest::new();
    let node = |kind: u32| [fields(&[kind | 0o644, 0, 0, 0]), string("n")].concat();
    let fifo = guest
        .call(opcode::MKNOD, ROOT, &node(libc::S_IFIFO))
        .unwrap();
    assert!(fs::metadata(guest.host("n")).unwrap().file_type().is_fifo());
    let fifo = Guest::entry(&fifo).node;
    assert_eq!(guest.open(fifo, libc::O_RDONLY).err(), Some(Errno::NXIO));
    guest.unlink(ROOT, "n").unwrap();
    for kind in [libc::S_IFBLK, libc::S_IFCHR] {
        assert_eq!(
            guest.call(opcode::MKNOD, ROOT, &node(kind)).err(),
            Some(Errno::PERM)
        );
    }
    assert_eq!(
        guest.call(opcode::MKNOD, ROOT, &node(libc::S_IFDIR)).err(),
        Some(Errno::INVAL)
    );
}

#[test]
fn syncing_flushing_and_statfs_are_served() {
    let mut guest = Guest::new();
    let (entry, handle) = guest.create(ROOT, "a", libc::O_RDWR).unwrap();
    for flags in [0, 1] {
        let body = [longs(&[handle]), fields(&[flags, 0])].concat();
        guest.call(opcode::FSYNC, entry.node, &body).unwrap();
    }
    let body = [longs(&[handle]), fields(&[0, 0]), longs(&[0])].concat();
    guest.call(opcode::FLUSH, entry.node, &body).unwrap();
    guest.call(opcode::RELEASE, entry.node, &body).unwrap();
    assert_eq!(
        guest.call(opcode::FLUSH, entry.node, &body).err(),
        Some(Errno::BADF)
    );
    guest.call(opcode::SYNCFS, ROOT, &longs(&[0])).unwrap();
    assert_eq!(guest.call(opcode::STATFS, ROOT, b"").unwrap().len(), 80);
    fs::set_permissions(guest.host("a"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(guest.getattr(entry.node).unwrap().mode & 0o777, 0o600);
}
