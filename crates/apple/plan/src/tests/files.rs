//! Files that cannot be used are named with their setting before anything starts.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::PathBuf;

use crate::{Architecture, check_files};
use capsa_core::{BackendKind, BootSpec, DiskSpec, Error, LinuxBoot, ShareSpec, UefiBoot, VmSpec};
use tempfile::TempDir;

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn kernel(&self, architecture: Architecture) -> PathBuf {
        let mut content = vec![0; 1024];
        match architecture {
            Architecture::Aarch64 => content[56..60].copy_from_slice(b"ARM\x64"),
            Architecture::X86_64 => content[0x202..0x206].copy_from_slice(b"HdrS"),
        }
        self.write("kernel", &content)
    }

    fn missing(&self) -> PathBuf {
        self.0.path().join("missing")
    }
}

fn linux(kernel: PathBuf, initramfs: Option<PathBuf>) -> VmSpec {
    VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel,
        initramfs,
        command_line: String::new(),
    }))
}

fn with_disk(path: PathBuf) -> VmSpec {
    let mut spec = VmSpec::new(BootSpec::Uefi(UefiBoot::default()));
    spec.disks = vec![DiskSpec::new(path)];
    spec
}

fn check(spec: &VmSpec) -> Result<(), Error> {
    check_files(spec, BackendKind::Vfkit, Architecture::Aarch64)
}

fn refusal(spec: &VmSpec) -> (String, String) {
    match check(spec) {
        Err(Error::File {
            setting, reason, ..
        }) => (setting, reason),
        other => panic!("{other:?}"),
    }
}

#[test]
fn files_in_order_pass() {
    let files = Files::new();
    let mut spec = linux(
        files.kernel(Architecture::Aarch64),
        Some(files.write("initramfs", b"070701")),
    );
    spec.disks = vec![DiskSpec::new(files.write("disk", &[0; 512]))];
    spec.shares = vec![ShareSpec::new(files.0.path(), "/mnt")];
    check(&spec).unwrap();
}

#[test]
fn kernels_that_this_mac_cannot_boot_are_refused_with_the_reason() {
    let files = Files::new();
    let intel = linux(files.kernel(Architecture::X86_64), None);
    assert!(refusal(&intel).1.contains("x86-64"));
    for (content, word) in [
        (&b"\x1f\x8b\x08 compressed"[..], "compressed"),
        (b"not a kernel at all", "not an arm64 kernel"),
        (b"", "empty"),
    ] {
        let spec = linux(files.write("kernel", content), None);
        let (setting, reason) = refusal(&spec);
        assert_eq!(setting, "kernel");
        assert!(reason.contains(word), "{reason}");
    }
}

#[test]
fn missing_files_are_named_with_their_setting() {
    let files = Files::new();
    let kernel = files.kernel(Architecture::Aarch64);
    let mut share = linux(kernel.clone(), None);
    share.shares = vec![ShareSpec::new(files.missing(), "/mnt")];
    let mut store = VmSpec::new(BootSpec::Uefi(UefiBoot {
        firmware: None,
        variable_store: Some(files.missing().join("store")),
    }));
    store.name = None;
    for (spec, name) in [
        (linux(files.missing(), None), "kernel"),
        (linux(kernel, Some(files.missing())), "initramfs"),
        (with_disk(files.missing()), "disk 0"),
        (share, "share 0"),
        (store, "variable_store"),
    ] {
        assert_eq!(refusal(&spec).0, name);
    }
}

#[test]
fn disks_in_another_format_or_of_half_a_sector_are_refused() {
    let files = Files::new();
    let qcow2 = check(&with_disk(files.write("q", b"QFI\xfb\0\0\0\x03")));
    assert!(
        matches!(&qcow2, Err(Error::Unsupported { setting, .. }) if setting.contains("qcow2")),
        "{qcow2:?}"
    );
    assert!(
        refusal(&with_disk(files.write("d", &[0; 513])))
            .1
            .contains("513")
    );
    assert!(
        refusal(&with_disk(files.0.path().into()))
            .1
            .contains("regular file")
    );
}

#[test]
fn share_that_is_a_file_is_refused() {
    let files = Files::new();
    let mut spec = linux(files.kernel(Architecture::Aarch64), None);
    spec.shares = vec![ShareSpec::new(files.write("f", b"x"), "/mnt")];
    assert!(refusal(&spec).1.contains("not a directory"));
}
