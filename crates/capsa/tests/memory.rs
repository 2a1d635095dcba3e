//! The memory balloon.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use capsa::test_utils::{self, LIMIT, Shell};
use capsa::{Error, MemoryReport, MemorySize, VmHandle};
use tokio::time::{sleep, timeout};

const MIB: u64 = 1 << 20;

/// Asks the guest until its answer satisfies `wanted`.
async fn until(vm: &VmHandle, wanted: impl Fn(&MemoryReport) -> bool) -> MemoryReport {
    let asking = async {
        loop {
            let report = vm.memory_report().await.unwrap();
            if wanted(&report) {
                return report;
            }
            // The guest gives in its own time, and tells nobody when it is done.
            sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    timeout(LIMIT, asking).await.unwrap()
}

#[tokio::test]
async fn a_guest_gives_memory_when_asked_and_takes_it_back() {
    let shell = Shell::start(test_utils::vm().await.balloon(true)).await;
    let vm = &shell.vm;

    let before = vm.memory_report().await.unwrap();
    vm.set_balloon_target(MemorySize::mib(64)).await.unwrap();
    let given = until(vm, |report| report.balloon_actual == 64 * MIB).await;
    vm.set_balloon_target(MemorySize::mib(0)).await.unwrap();
    let taken = until(vm, |report| report.balloon_actual == 0).await;

    let free = |report: &MemoryReport| report.free.unwrap();
    assert!(before.total.unwrap() > 180 * MIB, "{before:?}");
    assert_eq!(given.balloon_target, 64 * MIB);
    assert!(
        free(&given) + 32 * MIB < free(&before),
        "{before:?} {given:?}"
    );
    assert!(
        free(&taken) > free(&given) + 32 * MIB,
        "{given:?} {taken:?}"
    );
}

#[tokio::test]
async fn memory_that_a_guest_frees_goes_back_to_the_host() {
    let mut shell = Shell::start(test_utils::vm().await.balloon(true)).await;

    let process = shell.vm.process_id().unwrap();
    let before = shell.vm.memory_report().await.unwrap();
    shell
        .run("dd if=/dev/zero of=/tmp/big bs=1M count=96 2>/dev/null")
        .await;
    let full = resident(process);
    shell.run("rm /tmp/big").await;
    let freeing = async {
        while resident(process) + 64 * MIB > full {
            // The guest reports it in its own time, and tells nobody.
            sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    timeout(LIMIT, freeing).await.unwrap();
    let after = shell.vm.memory_report().await.unwrap();

    assert_eq!(after.balloon_actual, 0);
    if let (Some(before), Some(after)) = (before.reported_free, after.reported_free) {
        assert!(after > before + 64 * MIB, "{before} {after}");
    }
}

/// How much memory of the host a process has.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn a_vm_without_a_balloon_says_so() {
    let vm = test_utils::vm().await.start().await.unwrap();

    for refused in [
        vm.set_balloon_target(MemorySize::mib(64)).await.err(),
        vm.memory_report().await.err(),
    ] {
        assert!(
            matches!(refused, Some(Error::InvalidState { .. })),
            "{refused:?}"
        );
    }
}
