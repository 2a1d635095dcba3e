//! The framework's saved states, on macOS 14 and newer. Boots the kernel and initramfs that
//! `CAPSA_KERNEL` and `CAPSA_INITRD` name, whose init is a shell on the console.
#![cfg(target_os = "macos")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::path::PathBuf;

use capsa_apple_vz::native_backend;
use capsa_core::{
    BootSpec, ConsoleInput, ConsoleIo, HypervisorBackend, LinuxBoot, VmExit, VmSpec, VmStatus,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn named_by(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} names no file"),
    }
}

/// Types a line and reads until `text` has come.
async fn answer(console: &mut ConsoleIo, line: &str, text: &str) {
    console.input.write_all(line.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    while !String::from_utf8_lossy(&all).contains(text) {
        let mut buffer = [0; 4096];
        let count = console.output.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&buffer[..count]);
    }
}

#[tokio::test]
async fn restored_guest_goes_on_where_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state");
    let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel: named_by("CAPSA_KERNEL"),
        initramfs: Some(named_by("CAPSA_INITRD")),
        command_line: "console=hvc0 capsa.console=raw".to_owned(),
    }));
    spec.console.input = ConsoleInput::Virtio;

    // A variable of the shell, which is nowhere but in the guest's memory.
    let mut first = native_backend().launch(&spec).await.unwrap();
    let mut console = first.console.take().unwrap();
    answer(&mut console, "kept=$((6 * 7)); echo set\n", "set").await;
    first.handle.pause().await.unwrap();
    first.handle.save_state(&file).await.unwrap();
    first.handle.kill().await.unwrap();
    drop(first);

    let restoring = native_backend().restoring(&file);
    let mut second = restoring.launch(&spec).await.unwrap();
    let mut console = second.console.take().unwrap();
    answer(&mut console, "echo kept: $kept\n", "kept: 42").await;
    answer(&mut console, "poweroff -f\n", "").await;

    let mut status = second.handle.status();
    let ended = status.wait_for(|status| status.exit().is_some()).await;
    let exit = |status: &VmStatus| status.exit().cloned();
    assert_eq!(exit(&ended.unwrap()), Some(VmExit::PoweredOff));
}
