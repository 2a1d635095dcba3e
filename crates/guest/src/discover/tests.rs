use std::collections::HashMap;
use std::fs;

use super::*;
use crate::test_kernel::host_kernel;

fn search(variables: &[(&str, &str)], executable: &str) -> SearchPath {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    SearchPath::from_parts(
        |name| variables.get(name).map(OsString::from),
        Some(Path::new(executable)),
    )
}

/// Two data directories; the second holds a default kernel and one called `other`.
struct Fixture {
    directory: tempfile::TempDir,
    path: SearchPath,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let stores: Vec<_> = ["first", "second"]
            .map(|name| directory.path().join(name))
            .into();
        let file = directory.path().join("vmlinuz");
        fs::write(&file, host_kernel("6.1.0")).unwrap();
        let second = KernelStore::at(&stores[1]);
        second.import(&file, "default").unwrap();
        second.import(&file, "other").unwrap();
        let path = SearchPath {
            directories: stores,
            ..SearchPath::default()
        };
        Self { directory, path }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("vmlinuz")
    }
}

#[test]
fn directories_are_searched_in_the_documented_order() {
    let path = search(&[("HOME", "/home/me")], "/opt/capsa/bin/capsa");

    assert_eq!(
        path.directories,
        [
            "/home/me/.local/share/capsa",
            "/opt/capsa/bin",
            "/opt/capsa/share/capsa",
            "/usr/share/capsa"
        ]
        .map(PathBuf::from)
    );
}

#[test]
fn data_home_replaces_the_one_below_home() {
    let path = search(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "/data")], "/x");

    assert_eq!(path.directories[0], Path::new("/data/capsa"));
}

#[test]
fn relative_data_home_counts_as_unset() {
    let path = search(&[("HOME", "/home/me"), ("XDG_DATA_HOME", "data")], "/x");

    assert_eq!(
        path.directories[0],
        Path::new("/home/me/.local/share/capsa")
    );
}

#[test]
fn empty_variable_counts_as_unset() {
    let path = search(&[("CAPSA_KERNEL", "")], "/usr/bin/capsa");

    assert_eq!(path.kernel_variable, None);
    assert_eq!(
        path.directories,
        ["/usr/bin", "/usr/share/capsa"].map(PathBuf::from)
    );
}

#[test]
fn default_kernel_of_a_later_directory_is_found() {
    let fixture = Fixture::new();

    let found = fixture.path.kernel(None).unwrap();

    let second = fixture.directory.path().join("second");
    assert_eq!(found.path, second.join("kernels/default/kernel"));
    assert_eq!(found.origin, Origin::Default(second));
}

#[test]
fn variable_wins_over_the_directories() {
    let mut fixture = Fixture::new();
    fixture.path.kernel_variable = Some(fixture.file());

    let found = fixture.path.kernel(None).unwrap();

    assert_eq!(found.path, fixture.file());
    assert_eq!(found.origin, Origin::Variable("CAPSA_KERNEL"));
}

#[test]
fn callers_path_wins_over_the_variable() {
    let mut fixture = Fixture::new();
    fixture.path.kernel_variable = Some("/nowhere".into());
    let file = fixture.file();

    let found = fixture.path.kernel(Some(&file)).unwrap();

    assert_eq!(found.origin, Origin::Path);
}

#[test]
fn callers_name_of_a_stored_kernel_is_found() {
    let fixture = Fixture::new();

    let found = fixture.path.kernel(Some(Path::new("other"))).unwrap();

    assert_eq!(found.origin, Origin::Name("other".into()));
    assert!(found.path.ends_with("second/kernels/other/kernel"));
}

#[test]
fn missing_callers_path_is_not_passed_over() {
    let fixture = Fixture::new();

    let error = fixture
        .path
        .kernel(Some(Path::new("/no/such")))
        .unwrap_err();

    assert_eq!(
        error.to_string(),
        "kernel: /no/such: there is no such file; check the path"
    );
}

#[test]
fn missing_file_in_the_variable_is_not_passed_over() {
    let mut fixture = Fixture::new();
    fixture.path.kernel_variable = Some("/no/such".into());

    let error = fixture.path.kernel(None).unwrap_err();

    assert!(
        error.to_string().contains("CAPSA_KERNEL names it"),
        "{error}"
    );
}

#[test]
fn nothing_anywhere_lists_every_place_and_the_commands() {
    let fixture = Fixture::new();

    let error = fixture.path.initramfs(None).unwrap_err();

    let text = error.to_string();
    for place in &fixture.path.directories {
        let place = place.join("initramfs/default.cpio").display().to_string();
        assert!(text.contains(&place), "{text}");
    }
    assert!(
        text.contains("CAPSA_INITRD") && text.contains("cargo xtask initramfs"),
        "{text}"
    );
    let core = capsa_core::Error::from(error).to_string();
    assert!(core.contains("cargo xtask initramfs"), "{core}");
}
