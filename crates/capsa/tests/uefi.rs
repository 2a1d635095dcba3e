//! UEFI firmware boots a real disk: systemd-boot on it, which starts Debian's kernel, whose init is a
//! shell on the serial port. `cargo xtask setup` makes the disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::path::{Path, PathBuf};

use capsa::test_utils::{self, LIMIT};
use capsa::{
    Capsa, DiskAccess, DiskFormat, DiskSpec, Pattern, UefiBootConfig, UefiVmBuilder, VmConsole,
    VmExit, VmHandle,
};

/// A variable of the firmware as Linux shows it: its name, and the vendor that it belongs to.
const VARIABLE: &str = "/sys/firmware/efi/efivars/Capsa-6f9ec1c2-5f0a-4b1c-9d6e-0d6f5c1f7a11";

fn image() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .unwrap();
    let path = cache.join("capsa/uefi-test.img");
    assert!(
        path.exists(),
        "`cargo xtask setup` makes {}",
        path.display()
    );
    path
}

/// The disk as a layer over the image, which all tests share.
fn disk() -> DiskSpec {
    let mut disk = DiskSpec::new(image());
    disk.format = Some(DiskFormat::Raw);
    disk.access = DiskAccess::Overlay { layer: None };
    disk.serial = Some("boot-disk".to_owned());
    disk
}

async fn builder(boot: UefiBootConfig) -> UefiVmBuilder {
    Capsa::vm(boot)
        .backend(test_utils::backend().await.backend)
        .memory_mib(256)
        .disk(disk())
}

struct Shell {
    vm: VmHandle,
    console: VmConsole,
}

impl Shell {
    async fn start(builder: UefiVmBuilder) -> Self {
        let vm = builder
            .start()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let mut console = vm.console().unwrap();
        let ready = console.wait_for("ready-for-tests", LIMIT).await;
        ready.unwrap_or_else(|error| panic!("{error}"));
        Self { vm, console }
    }

    async fn run(&mut self, command: &str) -> String {
        self.send(&format!(
            "echo \"<<\"; {{ {command}; }} 2>&1; echo \">>$?\""
        ))
        .await;
        let end = Pattern::regex(r">>\d+\r?\n").unwrap();
        let output = self.console.wait_for(end, LIMIT).await;
        let output = output.unwrap_or_else(|error| panic!("{command}: {error}"));
        let output = String::from_utf8_lossy(&output).replace('\r', "");
        let (_, output) = output.rsplit_once("<<\n").unwrap();
        match output.trim_end().rsplit_once(">>") {
            Some((text, "0")) => text.trim_end().to_owned(),
            _ => panic!("{command}: {output}"),
        }
    }

    async fn send(&mut self, line: &str) {
        self.console.write_line(line).await.unwrap();
    }
}

async fn with_store(store: &Path) -> Shell {
    Shell::start(builder(UefiBootConfig::new().variable_store(store)).await).await
}

#[tokio::test]
async fn variable_is_kept_over_two_boots_and_reset_is_told_from_power_off() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("variables");

    let mut first = with_store(&store).await;
    // Four bytes of attributes (non-volatile, at boot and at run time), then the value.
    first
        .run(&format!(r"printf '\7\0\0\0kept' > {VARIABLE}"))
        .await;
    first.send("reboot -f").await;
    assert_eq!(first.vm.wait().await, VmExit::Reset);

    let mut second = with_store(&store).await;
    let value = second.run(&format!("tail -c 4 {VARIABLE}")).await;
    let serial = second.run("cat /sys/block/vda/serial").await;
    second.send("poweroff -f").await;
    assert_eq!(second.vm.wait().await, VmExit::PoweredOff);
    assert_eq!(value, "kept");
    assert_eq!(serial, "boot-disk");
}

#[tokio::test]
async fn writes_to_an_overlay_leave_the_image_and_variables_without_a_store_are_forgotten() {
    let before = std::fs::read(image()).unwrap();
    let mut shell = Shell::start(builder(UefiBootConfig::new()).await).await;

    shell
        .run("echo written by the guest | dd of=/dev/vda bs=512 count=1 conv=sync,fsync")
        .await;
    let first = shell.run("head -c 20 /dev/vda").await;
    shell.send("poweroff -f").await;

    assert_eq!(shell.vm.wait().await, VmExit::PoweredOff);
    assert_eq!(first, "written by the guest");
    assert!(std::fs::read(image()).unwrap() == before);
}

#[tokio::test]
async fn store_of_a_running_vm_is_refused_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("variables");
    let boot = || UefiBootConfig::new().variable_store(&store);
    let first = builder(boot()).await.start().await.unwrap();

    let second = builder(boot()).await.build().await;

    assert!(
        second
            .unwrap_err()
            .to_string()
            .contains("another VM is using it")
    );
    first.kill().await.unwrap();
    assert_eq!(first.wait().await, VmExit::Killed);
    builder(boot()).await.build().await.unwrap();
}
