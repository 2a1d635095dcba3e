use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::files::ExtractOptions;
use crate::frame::{FrameBuffer, Kind, frame, message};

fn packed(path: &Path) -> Vec<u8> {
    let mut frames = Vec::new();
    pack(path, false, &mut |frame: &[u8]| {
        frames.extend_from_slice(frame);
        io::Result::Ok(())
    })
    .unwrap();
    frames
}

fn extract(place: &Path, frames: &[u8], options: ExtractOptions) -> io::Result<TreeSummary> {
    let mut extractor = Extractor::new(place, options)?;
    let mut buffer = FrameBuffer::of_host();
    buffer.push(frames);
    while let Some((kind, content)) = buffer.next_frame()? {
        if let Some(summary) = extractor.take(kind, content)? {
            return Ok(summary);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn exact() -> ExtractOptions {
    ExtractOptions {
        keep_set_id: true,
        ..ExtractOptions::default()
    }
}

fn file(name: &str, content: &str) -> Vec<u8> {
    let attributes = Attributes {
        mode: 0o644,
        ..Attributes::default()
    };
    let name = name.into();
    let mut frames = message(&TreeItem::File { name, attributes }).unwrap();
    frames.extend(frame(Kind::Data, content.as_bytes()));
    frames.extend(frame(Kind::End, b""));
    frames
}

fn directory(name: &str) -> Vec<u8> {
    let attributes = Attributes {
        mode: 0o755,
        ..Attributes::default()
    };
    let name = name.into();
    message(&TreeItem::Directory { name, attributes }).unwrap()
}

fn link(name: &str, target: &str) -> Vec<u8> {
    message(&TreeItem::Symlink {
        name: name.into(),
        target: target.into(),
        attributes: Attributes::default(),
    })
    .unwrap()
}

fn item(item: &TreeItem) -> Vec<u8> {
    message(item).unwrap()
}

fn finished() -> Vec<u8> {
    item(&TreeItem::Finished(TreeSummary::default()))
}

#[test]
fn tree_of_all_kinds_comes_out_as_it_went_in() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::create_dir_all(from.join("deep/er")).unwrap();
    fs::write(from.join("deep/er/file"), "content").unwrap();
    fs::write(from.join("empty"), "").unwrap();
    fs::write(from.join(OsStr::from_bytes(b"\xff\n")), "odd").unwrap();
    symlink("/nowhere/at all", from.join("link")).unwrap();
    fs::hard_link(from.join("deep/er/file"), from.join("second")).unwrap();
    fs::set_permissions(from.join("empty"), Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(from.join("deep"), Permissions::from_mode(0o1700)).unwrap();

    let summary = extract(&to, &packed(&from), exact()).unwrap();

    assert_eq!(
        (summary.directories, summary.files, summary.others),
        (3, 3, 2)
    );
    assert_eq!(fs::read(to.join("second")).unwrap(), b"content");
    assert_eq!(fs::metadata(to.join("second")).unwrap().nlink(), 2);
    for name in ["", "deep", "empty", "link", "deep/er/file"] {
        let [before, after] =
            [&from, &to].map(|root| fs::symlink_metadata(root.join(name)).unwrap());
        assert_eq!(before.mode(), after.mode(), "{name}");
        assert_eq!(before.mtime(), after.mtime(), "{name}");
        assert_eq!(before.mtime_nsec(), after.mtime_nsec(), "{name}");
    }
}

#[test]
fn set_id_bits_go_unless_they_are_to_stay() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::write(&from, "x").unwrap();
    fs::set_permissions(&from, Permissions::from_mode(0o6755)).unwrap();

    extract(&to, &packed(&from), ExtractOptions::default()).unwrap();

    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["..", ".", "", "a/b", "/etc", "../x", "a\0b"] {
        let outside = tempfile::tempdir().unwrap();
        let place = outside.path().join("in/side");
        fs::create_dir(outside.path().join("in")).unwrap();
        let frames = [directory(""), file(name, "evil"), finished()].concat();

        let error = extract(&place, &frames, exact()).unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{name:?}");
    }
}

#[test]
fn link_that_is_then_used_as_a_directory_is_replaced_by_one() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("inside");
    let target = outside.path().to_str().unwrap().to_owned();
    let frames = [
        directory(""),
        link("way", &target),
        directory("way"),
        file("evil", "evil"),
        item(&TreeItem::Leave),
        item(&TreeItem::Leave),
        finished(),
    ]
    .concat();

    extract(&place, &frames, exact()).unwrap();

    assert!(!outside.path().join("evil").exists());
    assert!(place.join("way/evil").exists());
}

#[test]
fn file_under_the_name_of_a_link_replaces_the_link() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("inside");
    let victim = outside.path().join("victim");
    fs::write(&victim, "mine").unwrap();
    let frames = [
        directory(""),
        link("a", victim.to_str().unwrap()),
        file("a", "evil"),
        item(&TreeItem::Leave),
        finished(),
    ]
    .concat();

    extract(&place, &frames, exact()).unwrap();

    assert_eq!(fs::read(&victim).unwrap(), b"mine");
    assert_eq!(fs::read(place.join("a")).unwrap(), b"evil");
}

#[test]
fn hard_link_through_a_link_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("inside");
    fs::write(outside.path().join("victim"), "mine").unwrap();
    let frames = [
        directory(""),
        link("way", outside.path().to_str().unwrap()),
        item(&TreeItem::HardLink {
            name: "mine".into(),
            original: vec!["way".into(), "victim".into()],
        }),
    ]
    .concat();

    extract(&place, &frames, exact()).unwrap_err();

    assert!(!place.join("mine").exists());
}

#[test]
fn hard_link_with_a_way_up_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let place = outside.path().join("inside");
    fs::write(outside.path().join("victim"), "mine").unwrap();
    let frames = [
        directory(""),
        item(&TreeItem::HardLink {
            name: "mine".into(),
            original: vec!["..".into(), "victim".into()],
        }),
    ]
    .concat();

    extract(&place, &frames, exact()).unwrap_err();
}

#[test]
fn second_root_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let frames = [file("", "one"), file("", "two")].concat();
    let error = extract(&outside.path().join("x"), &frames, exact()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn leaving_the_root_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let leave = item(&TreeItem::Leave);
    let frames = [directory(""), leave.clone(), leave].concat();
    let error = extract(&outside.path().join("x"), &frames, exact()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn tree_that_is_too_deep_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let mut frames = directory("");
    for _ in 0..MAX_DEPTH {
        frames.extend(directory("d"));
    }
    extract(&outside.path().join("x"), &frames, exact()).unwrap_err();
}

#[test]
fn directory_that_is_there_keeps_what_it_has() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("new"), "new").unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(to.join("old"), "old").unwrap();
    fs::set_permissions(&to, Permissions::from_mode(0o711)).unwrap();

    extract(&to, &packed(&from), exact()).unwrap();

    assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o711);
    assert!(to.join("old").exists() && to.join("new").exists());
}

#[test]
fn file_that_is_there_is_an_error_where_nothing_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("x");
    fs::write(&place, "old").unwrap();
    let options = ExtractOptions {
        replace: false,
        ..exact()
    };

    let error = extract(&place, &file("", "new"), options).unwrap_err();

    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&place).unwrap(), b"old");
}

#[test]
fn missing_tree_is_told_with_its_path() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let frames = packed(&missing);
    let mut buffer = FrameBuffer::of_host();
    buffer.push(&frames);

    let (_, content) = buffer.next_frame().unwrap().unwrap();

    let TreeItem::Failed(failure) = crate::frame::decode(content).unwrap() else {
        panic!("no failure");
    };
    assert!(failure.context.ends_with("missing"), "{failure}");
}

proptest! {
    #[test]
    fn any_frames_make_a_tree_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let directory = tempfile::tempdir().unwrap();
        let _ = extract(&directory.path().join("x"), &bytes, exact());
    }
}
