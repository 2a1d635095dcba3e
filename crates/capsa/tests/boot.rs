//! Guests boot, and are what was asked for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use capsa::test_utils::{self, Shell};
use capsa::{MemorySize, VmExit, VmStatus};

#[tokio::test]
async fn a_default_guest_boots_and_answers() {
    let mut shell = Shell::start(test_utils::vm().await).await;

    let answer = shell.run("uname -s; echo $((6 * 7))").await;

    assert_eq!(answer, "Linux\n42");
    assert_eq!(shell.vm.status(), VmStatus::Running);
    assert!(
        shell
            .vm
            .process_id()
            .is_some_and(|id| id != std::process::id())
    );
    assert!(
        shell
            .vm
            .start_duration()
            .is_some_and(|time| !time.is_zero())
    );
}

async fn assert_cpus(count: u32) {
    let mut shell = Shell::start(test_utils::vm().await.cpus(count)).await;
    assert_eq!(shell.run("nproc").await, count.to_string());
}

#[tokio::test]
async fn one_cpu_is_seen_by_the_guest() {
    assert_cpus(1).await;
}

#[tokio::test]
async fn two_cpus_are_seen_by_the_guest() {
    assert_cpus(2).await;
}

#[tokio::test]
async fn eight_cpus_are_seen_by_the_guest() {
    assert_cpus(8).await;
}

/// The kernel keeps some of the memory for itself: its image and a page's record for each page.
async fn assert_memory(size: MemorySize) {
    let mut shell = Shell::start(test_utils::vm().await.memory(size)).await;
    let total: u64 = shell
        .run("free -m | awk '/Mem/ { print $2 }'")
        .await
        .parse()
        .unwrap();
    let asked = size.as_mib();
    let least = asked - asked / 32 - 40;
    assert!((least..=asked).contains(&total), "{total} of {asked} MiB");
}

#[tokio::test]
async fn the_guest_has_128_mib() {
    assert_memory(MemorySize::mib(128)).await;
}

#[tokio::test]
async fn the_guest_has_3_gib() {
    assert_memory(MemorySize::gib(3)).await;
}

#[tokio::test]
async fn the_guest_has_5_gib_around_the_gap_below_4() {
    assert_memory(MemorySize::gib(5)).await;
}

#[tokio::test]
async fn kernel_parameters_reach_the_guest() {
    let builder = test_utils::vm().await.cmdline("one=1").cmdline("two");
    let mut shell = Shell::start(builder).await;
    let line = shell.run("cat /proc/cmdline").await;
    assert!(line.contains("one=1 two"), "{line}");
}

#[tokio::test]
async fn two_guests_run_at_once_and_do_not_mix() {
    let (mut first, mut second) = tokio::join!(
        async { Shell::start(test_utils::vm().await.name("first")).await },
        async { Shell::start(test_utils::vm().await.name("second")).await },
    );
    first.run("echo one > /tmp/mark").await;
    second.run("echo two > /tmp/mark").await;
    assert_eq!(first.run("cat /tmp/mark").await, "one");
    assert_eq!(second.run("cat /tmp/mark").await, "two");

    first.send("poweroff -f").await;
    assert_eq!(first.vm.wait().await, VmExit::PoweredOff);
    assert_eq!(second.run("echo still here").await, "still here");
}
