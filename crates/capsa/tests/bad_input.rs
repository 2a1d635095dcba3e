//! What cannot work is refused before anything is started, naming the setting and the fix.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};

use capsa::{
    BootKinds, Capsa, DiskSpec, Error, LinuxBootConfig, LinuxVmBuilder, NetworkSpec, ShareSpec,
    UefiBootConfig, VsockSpec, test_utils,
};
use tempfile::TempDir;

/// A file with this content, in a folder that is removed with the first value.
fn file(content: &[u8]) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, content).unwrap();
    (folder, path)
}

async fn with_kernel(kernel: &Path) -> LinuxVmBuilder {
    Capsa::vm(LinuxBootConfig::new().kernel(kernel)).backend(test_utils::backend().await.backend)
}

/// The default kernel's content.
async fn kernel() -> Vec<u8> {
    let vm = test_utils::vm().await.build().await.unwrap();
    match &vm.spec().boot {
        capsa::BootSpec::Linux(linux) => std::fs::read(&linux.kernel).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_file_error(error: &Error, setting: &str, path: &Path, word: &str) {
    let Error::File {
        setting: found,
        path: named,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((found.as_str(), named.as_path()), (setting, path));
    assert!(error.to_string().contains(word), "{error}");
}

async fn assert_bad_kernel(content: &[u8], word: &str) {
    let (_folder, path) = file(content);
    let error = with_kernel(&path).await.build().await.unwrap_err();
    assert_file_error(&error, "kernel", &path, word);
}

#[tokio::test]
async fn a_kernel_that_is_not_there_is_refused() {
    let path = Path::new("/no/such/kernel");
    let error = with_kernel(path).await.build().await.unwrap_err();
    assert_file_error(&error, "kernel", path, "no such file");
}

#[tokio::test]
async fn a_kernel_that_is_a_directory_is_refused() {
    let folder = TempDir::new().unwrap();
    let error = with_kernel(folder.path()).await.build().await.unwrap_err();
    assert_file_error(&error, "kernel", folder.path(), "directory");
}

#[tokio::test]
async fn an_empty_kernel_is_refused() {
    assert_bad_kernel(b"", "empty").await;
}

#[tokio::test]
async fn a_text_file_is_no_kernel() {
    assert_bad_kernel(b"#!/bin/sh\necho no kernel\n", "not a kernel").await;
}

#[tokio::test]
async fn a_truncated_kernel_is_refused() {
    let kernel = kernel().await;
    assert_bad_kernel(&kernel[..kernel.len() / 2], "truncated").await;
}

#[tokio::test]
async fn a_kernel_for_another_architecture_is_refused() {
    // An arm64 Image (Documentation/arch/arm64/booting.rst): its magic number stands at 56.
    let mut image = vec![0; 4096];
    image[16..24].copy_from_slice(&4096_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    if cfg!(target_arch = "x86_64") {
        assert_bad_kernel(&image, "aarch64").await;
    }
}

#[tokio::test]
async fn a_bzimage_with_a_corrupt_header_is_refused() {
    // The setup header (Documentation/arch/x86/boot.rst) with sectors beyond the file's end.
    let mut image = vec![0; 1024];
    image[0x1f1] = 200;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    assert_bad_kernel(&image, "bzImage").await;
}

#[tokio::test]
async fn an_initramfs_that_cannot_be_read_is_refused() {
    let folder = TempDir::new().unwrap();
    for path in [folder.path().to_owned(), folder.path().join("missing")] {
        let config = LinuxBootConfig::new().initramfs(&path);
        let error = Capsa::vm(config)
            .backend(test_utils::backend().await.backend)
            .build()
            .await
            .unwrap_err();
        assert!(error.to_string().starts_with("init"), "{error}");
        assert!(
            error.to_string().contains(&*path.to_string_lossy()),
            "{error}"
        );
    }
}

async fn refused_setting(builder: LinuxVmBuilder) -> String {
    match builder.build().await.unwrap_err() {
        Error::InvalidSetting { setting, .. } => setting,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn settings_out_of_range_are_refused() {
    let vm = || async { test_utils::vm().await };
    assert_eq!(refused_setting(vm().await.cpus(0)).await, "cpus");
    assert_eq!(refused_setting(vm().await.cpus(65)).await, "cpus");
    assert_eq!(refused_setting(vm().await.memory_mib(1)).await, "memory");
    assert_eq!(
        refused_setting(vm().await.memory_mib(1 << 30)).await,
        "memory"
    );
}

#[tokio::test]
async fn a_command_line_that_is_too_long_is_refused() {
    let builder = test_utils::vm()
        .await
        .cmdline("x".repeat(2000))
        .cmdline("y".repeat(100));
    let error = builder.build().await.unwrap_err();
    assert!(matches!(error, Error::CommandLine(_)), "{error:?}");
    assert!(error.to_string().contains("shorten it by"), "{error}");
}

#[tokio::test]
async fn what_the_backend_cannot_provide_is_refused() {
    let capabilities = test_utils::backend().await.capabilities;
    let refused = |builder: LinuxVmBuilder| async {
        let error = builder.build().await.unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error:?}");
    };
    let vm = || async { test_utils::vm().await };
    if capabilities.disk_formats.is_empty() {
        refused(vm().await.disk(DiskSpec::new("/dev/zero"))).await;
    }
    if !capabilities.shares {
        refused(vm().await.share(ShareSpec::new("/tmp", "/work"))).await;
    }
    if !capabilities.network {
        refused(vm().await.network(NetworkSpec::default())).await;
    }
    if !capabilities.vsock {
        refused(vm().await.vsock(VsockSpec::default())).await;
    }
    if !capabilities.balloon {
        refused(vm().await.balloon(true)).await;
    }
    let BootKinds { uefi, .. } = capabilities.boot;
    let built = Capsa::vm(UefiBootConfig::new())
        .backend(test_utils::backend().await.backend)
        .build()
        .await;
    assert_eq!(built.is_ok(), uefi);
    assert!(
        uefi || matches!(built, Err(Error::Unsupported { .. })),
        "{built:?}"
    );
}
