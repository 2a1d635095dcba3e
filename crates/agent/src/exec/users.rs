//! The guest's users and groups, from `/etc/passwd` and `/etc/group`: a static program has nobody else
//! to ask.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use capsa_agent_protocol::{Failure, FailureKind};

/// Longer files are read up to here.
const MAX_BYTES: u64 = 8 << 20;
/// More supplementary groups are left out: the kernel takes no more.
const MAX_GROUPS: usize = 65536;

/// Whom a command runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) name: Vec<u8>,
    pub(super) home: PathBuf,
}

/// The user that `wanted` names: `USER`, `UID`, `USER:GROUP` or `UID:GID`.
pub(super) fn look_up(wanted: Option<&str>) -> Result<User, Failure> {
    find(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

/// A file that is missing, as in an image without users, is as good as an empty one.
fn read(path: &str) -> Vec<u8> {
    let mut content = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_BYTES).read_to_end(&mut content);
    }
    content
}

fn find(wanted: Option<&str>, passwd: &[u8], group: &[u8]) -> Result<User, Failure> {
    let wanted = wanted.unwrap_or("0");
    let (user, wanted_group) = match wanted.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (wanted, None),
    };
    let number: Option<u32> = user.parse().ok();
    let entry = lines(passwd).find_map(|line| {
        let [name, _, uid, gid, _, home, ..] = fields(line)[..] else {
            return None;
        };
        let uid = parse(uid)?;
        let is_it = name == user.as_bytes() || number == Some(uid);
        is_it.then(|| (name.to_vec(), uid, parse(gid), home.to_vec()))
    });
    let mut found = match (entry, number) {
        (Some((name, uid, gid, home)), _) => User {
            uid,
            gid: gid.unwrap_or(uid),
            groups: Vec::new(),
            home: PathBuf::from(OsStr::from_bytes(&home)),
            name,
        },
        (None, Some(uid)) => User {
            uid,
            gid: uid,
            groups: Vec::new(),
            home: PathBuf::from(if uid == 0 { "/root" } else { "/" }),
            name: if uid == 0 {
                b"root".to_vec()
            } else {
                Vec::new()
            },
        },
        (None, None) if user == "root" => return find(Some("0"), passwd, group),
        (None, None) => return Err(unknown(format!("the guest has no user {user}"))),
    };
    match wanted_group {
        Some(name) => found.gid = find_group(name, group)?,
        None if !found.name.is_empty() => found.groups = groups_of(&found.name, group),
        None => {}
    }
    if !found.groups.contains(&found.gid) {
        found.groups.insert(0, found.gid);
    }
    Ok(found)
}

fn find_group(wanted: &str, group: &[u8]) -> Result<u32, Failure> {
    if let Ok(number) = wanted.parse() {
        return Ok(number);
    }
    lines(group)
        .find_map(|line| match fields(line)[..] {
            [name, _, gid, ..] if name == wanted.as_bytes() => parse(gid),
            _ => None,
        })
        .ok_or_else(|| unknown(format!("the guest has no group {wanted}")))
}

fn groups_of(user: &[u8], group: &[u8]) -> Vec<u32> {
    lines(group)
        .filter_map(|line| match fields(line)[..] {
            [_, _, gid, members, ..] => members
                .split(|byte| *byte == b',')
                .any(|member| member == user)
                .then(|| parse(gid))?,
            _ => None,
        })
        .take(MAX_GROUPS)
        .collect()
}

fn unknown(context: String) -> Failure {
    Failure::new(FailureKind::UnknownUser, context)
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn fields(line: &[u8]) -> Vec<&[u8]> {
    line.split(|byte| *byte == b':').collect()
}

fn parse(number: &[u8]) -> Option<u32> {
    std::str::from_utf8(number).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nbroken\nann:x:1000:100:Ann:/home/ann:/bin/sh\n";
    const GROUP: &[u8] = b"root:x:0:\nusers:x:100:\nwheel:x:10:bob,ann\ndisk:x:6:bob\n";

    #[test]
    fn user_by_name_has_home_and_groups() {
        let user = find(Some("ann"), PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid), (1000, 100));
        assert_eq!(user.groups, [100, 10]);
        assert_eq!(user.home, PathBuf::from("/home/ann"));
    }

    #[test]
    fn user_by_number_is_the_same() {
        assert_eq!(
            find(Some("1000"), PASSWD, GROUP),
            find(Some("ann"), PASSWD, GROUP)
        );
    }

    #[test]
    fn number_that_nobody_has_is_taken_as_it_is() {
        let user = find(Some("77"), PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (77, 77, vec![77]));
    }

    #[test]
    fn group_is_taken_by_name_and_number() {
        assert_eq!(find(Some("ann:wheel"), PASSWD, GROUP).unwrap().gid, 10);
        assert_eq!(find(Some("77:5"), PASSWD, GROUP).unwrap().gid, 5);
    }

    #[test]
    fn root_is_there_without_any_file() {
        let user = find(None, b"", b"").unwrap();
        assert_eq!((user.uid, user.home), (0, PathBuf::from("/root")));
        assert_eq!(find(Some("root"), b"", b"").unwrap().uid, 0);
    }

    #[test]
    fn unknown_names_are_told() {
        for wanted in ["eve", "ann:eve", ":", ""] {
            let failure = find(Some(wanted), PASSWD, GROUP).unwrap_err();
            assert_eq!(failure.kind, FailureKind::UnknownUser, "{wanted}");
        }
    }
}
