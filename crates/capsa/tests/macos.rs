//! What only a Mac has, and what its backends have in their own way; `docs/macos.md` names each. Takes
//! the backend that `CAPSA_TEST_BACKEND` names, and the kernel and initramfs of `CAPSA_KERNEL` and
//! `CAPSA_INITRD`.
#![cfg(target_os = "macos")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use capsa::network::Interface;
use capsa::test_utils::{self, LIMIT, Shell};
use capsa::{
    Capsa, DiskAccess, DiskSpec, MemorySize, ShareAccess, ShareSpec, UefiBootConfig, VmExit,
    VmHandle,
};
use tokio::time::{sleep, timeout};

async fn off(mut shell: Shell) {
    shell.send("poweroff -f").await;
    assert_eq!(shell.vm.wait().await, VmExit::PoweredOff);
}

#[tokio::test]
async fn raw_disks_come_in_order_with_their_identifiers_and_access() {
    let folder = tempfile::tempdir().unwrap();
    let disk = |name: &str, access| {
        let path = folder.path().join(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let mut disk = DiskSpec::new(path);
        disk.serial = Some(name.to_owned());
        disk.access = access;
        disk
    };
    let builder = test_utils::vm()
        .await
        .disk(disk("first", DiskAccess::ReadWrite))
        .disk(disk("second", DiskAccess::ReadOnly));
    let mut shell = Shell::start(builder).await;

    let serials = shell
        .run("cat /sys/block/vda/serial; echo; cat /sys/block/vdb/serial")
        .await;
    let read_only = shell.run("cat /sys/block/vda/ro /sys/block/vdb/ro").await;
    shell
        .run("echo written by the guest | dd of=/dev/vda bs=512 count=1 conv=sync,fsync")
        .await;
    off(shell).await;

    assert_eq!(
        serials.split_whitespace().collect::<Vec<_>>(),
        ["first", "second"]
    );
    assert_eq!(read_only, "0\n1");
    let image = std::fs::read(folder.path().join("first")).unwrap();
    assert!(image.starts_with(b"written by the guest"));
}

/// The meaning of `OwnerMapping::Mapped`, which is the only one that is not refused.
#[tokio::test]
async fn files_of_the_caller_are_those_of_the_guests_root() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("from-host"), "hello\n").unwrap();
    let mut share = ShareSpec::new(folder.path(), "/work");
    share.access = ShareAccess::ReadWrite;
    let mut shell = Shell::start(test_utils::vm().await.share(share)).await;

    let owner = shell.run("stat -c %u:%g /work/from-host").await;
    let content = shell.run("cat /work/from-host").await;
    shell.run("echo guest > /work/from-guest; sync").await;
    off(shell).await;

    assert_eq!((owner.as_str(), content.as_str()), ("0:0", "hello"));
    let made = std::fs::metadata(folder.path().join("from-guest")).unwrap();
    let ours = std::fs::metadata(folder.path()).unwrap();
    assert_eq!(made.uid(), ours.uid());
}

/// Not with vfkit, which refuses it.
#[tokio::test]
async fn guest_cannot_change_a_read_only_share() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("from-host"), "hello\n").unwrap();
    let share = ShareSpec::new(folder.path(), "/docs");
    let mut shell = Shell::start(test_utils::vm().await.share(share)).await;

    let done = shell
        .run(
            "for c in 'touch /docs/new' 'rm -f /docs/from-host' 'mkdir /docs/d'; do \
             $c 2>/dev/null && echo \"done: $c\"; done; mount -o remount,rw /docs; \
             touch /docs/again 2>/dev/null && echo remounted; true",
        )
        .await;

    assert_eq!(done, "");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// `CAPSA_TEST_UEFI_DISK` names a raw disk for the Mac's processor, whose system asks for a login on
/// `hvc0`.
#[tokio::test]
async fn uefi_disk_boots_twice_with_one_variable_store() {
    let named = std::env::var_os("CAPSA_TEST_UEFI_DISK").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (disk, store) = (folder.path().join("disk"), folder.path().join("variables"));
    std::fs::copy(named, &disk).unwrap();
    let mut files = Vec::new();

    for _ in 0..2 {
        let vm = Capsa::vm(UefiBootConfig::new().variable_store(&store))
            .backend(test_utils::backend().await.backend)
            .memory_mib(1024)
            .disk(DiskSpec::new(&disk))
            .start()
            .await
            .unwrap();
        let mut console = vm.console().unwrap();
        console.wait_for("login:", LIMIT).await.unwrap();
        assert_eq!(vm.stop(LIMIT).await.unwrap().exit, VmExit::PoweredOff);
        files.push(std::fs::metadata(&store).unwrap().ino());
    }

    assert_eq!(files[0], files[1], "the store was made anew");
}

/// Not with vfkit, which refuses it.
#[tokio::test]
async fn guests_driver_is_told_a_large_mtu() {
    let builder = test_utils::vm()
        .await
        .network(Interface::user_nat().mtu(9000));
    let mut shell = Shell::start(builder).await;

    let mtu = shell.run("cat /sys/class/net/eth0/mtu").await;

    assert_eq!(mtu, "9000");
}

/// Not with vfkit, which refuses it.
#[tokio::test]
async fn guest_gives_the_balloon_what_is_asked_for_and_takes_it_back() {
    let builder = test_utils::vm().await.memory_mib(1024).balloon(true);
    let mut shell = Shell::start(builder).await;
    let available = "awk '/MemAvailable/ { print $2 }' /proc/meminfo";
    let before: u64 = shell.run(available).await.parse().unwrap();

    for (target, gone) in [(512, true), (0, false)] {
        let size = MemorySize::mib(target);
        shell.vm.set_balloon_target(size).await.unwrap();
        let follows = async {
            // The guest gives in its own time, and tells nobody when it is done.
            loop {
                let now: u64 = shell.run(available).await.parse().unwrap();
                if (now + (400 << 10) < before) == gone {
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(LIMIT, follows).await.unwrap();
    }
}

#[tokio::test]
async fn rosetta_is_a_share_with_the_translator_in_it() {
    let mut shell = Shell::start(test_utils::vm().await.rosetta(true)).await;

    let found = shell
        .run("mkdir -p /tmp/r && mount -t virtiofs rosetta /tmp/r && ls /tmp/r")
        .await;

    assert!(found.contains("rosetta"), "{found}");
}

/// An M3 or newer, and macOS 15.
#[tokio::test]
async fn guest_with_nested_virtualization_starts_at_exception_level_2() {
    let builder = test_utils::vm().await.nested_virtualization(true);
    let mut shell = Shell::start(builder).await;

    let line = shell.run("dmesg | grep 'started at EL'").await;

    assert!(line.contains("EL2"), "{line}");
}

#[tokio::test]
async fn hundred_dropped_handles_leave_no_process() {
    let mut processes = Vec::new();
    for _ in 0..100 {
        let vm: VmHandle = test_utils::vm().await.start().await.unwrap();
        processes.extend(vm.process_id());
        drop(vm);
    }

    let alive = |process: &u32| {
        let status = Command::new("kill")
            .args(["-0", &process.to_string()])
            .status();
        *process != std::process::id() && status.unwrap().success()
    };
    let ended = async {
        while processes.iter().any(alive) {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(LIMIT, ended).await.unwrap();
}
