use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;

use super::*;
use crate::test_kernel::host_kernel;

struct Fixture {
    directory: tempfile::TempDir,
    store: KernelStore,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = KernelStore::at(directory.path().join("data"));
        Self { directory, store }
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

#[test]
fn imported_kernel_is_listed_with_its_record() {
    let fixture = Fixture::new();
    let file = fixture.file("vmlinuz", &host_kernel("6.1.0-a"));

    let imported = fixture.store.import(&file, "debian").unwrap();

    let listed = fixture.store.list().unwrap();
    assert_eq!(listed, [imported]);
    let record = listed[0].record.as_ref().unwrap();
    assert_eq!(record.version.as_deref(), Some("6.1.0-a"));
    assert_eq!(
        record.source,
        fs::canonicalize(&file).unwrap().display().to_string()
    );
    assert_eq!(fs::read(&listed[0].path).unwrap(), fs::read(&file).unwrap());
}

#[test]
fn import_under_a_taken_name_replaces_the_kernel() {
    let fixture = Fixture::new();
    let first = fixture.file("a", &host_kernel("6.1.0-a"));
    let second = fixture.file("b", &host_kernel("6.1.0-b"));
    fixture.store.import(&first, "mine").unwrap();

    let imported = fixture.store.import(&second, "mine").unwrap();

    assert_eq!(
        fixture.store.list().unwrap(),
        std::slice::from_ref(&imported)
    );
    assert_eq!(imported.record.unwrap().version.as_deref(), Some("6.1.0-b"));
}

#[test]
fn import_of_something_else_leaves_the_store_alone() {
    let fixture = Fixture::new();
    let file = fixture.file("notes.txt", b"no kernel");

    let error = fixture.store.import(&file, "mine").unwrap_err();

    assert!(error.to_string().contains("a text file"), "{error}");
    assert_eq!(fixture.store.list().unwrap(), []);
}

#[test]
fn names_that_leave_the_store_are_refused() {
    let fixture = Fixture::new();
    let file = fixture.file("vmlinuz", &host_kernel("6.1.0"));
    let long = "x".repeat(65);
    for name in [
        "", ".", "..", "a/b", "/etc", "-x", ".hidden", "a b", "a\0b", &long,
    ] {
        let error = fixture.store.import(&file, name).unwrap_err();
        assert!(matches!(error, StoreError::Name(_)), "{name:?}: {error}");
        assert!(
            matches!(fixture.store.remove(name), Err(StoreError::Name(_))),
            "{name:?}"
        );
    }
}

#[test]
fn removed_kernel_is_gone_without_a_trace() {
    let fixture = Fixture::new();
    let file = fixture.file("vmlinuz", &host_kernel("6.1.0"));
    fixture.store.import(&file, "mine").unwrap();

    fixture.store.remove("mine").unwrap();

    assert!(matches!(
        fixture.store.get("mine"),
        Err(StoreError::Unknown { .. })
    ));
    let left: BTreeSet<_> = fs::read_dir(fixture.store.kernels())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, BTreeSet::from([".lock".into()]));
}

#[test]
fn removing_an_unknown_kernel_names_it() {
    let fixture = Fixture::new();

    let error = fixture.store.remove("mine").unwrap_err();

    assert!(
        error
            .to_string()
            .starts_with("there is no kernel called mine in "),
        "{error}"
    );
}

#[test]
fn kernel_with_an_unreadable_record_is_still_listed() {
    let fixture = Fixture::new();
    let file = fixture.file("vmlinuz", &host_kernel("6.1.0"));
    let imported = fixture.store.import(&file, "mine").unwrap();
    fs::write(imported.path.with_file_name(RECORD_FILE), "{").unwrap();

    let listed = fixture.store.list().unwrap();

    assert_eq!(listed[0].name, "mine");
    assert_eq!(listed[0].record, None);
}

#[test]
fn kernels_written_at_the_same_time_are_each_whole() {
    let fixture = Fixture::new();
    let files: Vec<_> = (0..4)
        .map(|n| fixture.file(&format!("k{n}"), &host_kernel(&format!("6.1.{n}"))))
        .collect();

    thread::scope(|scope| {
        for file in &files {
            let store = &fixture.store;
            scope.spawn(move || {
                for _ in 0..8 {
                    store.import(file, "mine").unwrap();
                    // A reader meets some whole kernel at any moment.
                    let content = fs::read(store.get("mine").unwrap().path).unwrap();
                    assert!((0..4).any(|n| content == host_kernel(&format!("6.1.{n}"))));
                }
            });
        }
    });

    let record = fixture.store.get("mine").unwrap().record.unwrap();
    let content = fs::read(fixture.store.kernel_path("mine").unwrap()).unwrap();
    assert_eq!(content, host_kernel(&record.version.unwrap()));
    let left = fs::read_dir(fixture.store.kernels().join("mine"))
        .unwrap()
        .count();
    assert_eq!(left, 2, "staging files were left behind");
}
