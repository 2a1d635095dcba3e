//! Dropping a handle frees everything that its VM held.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fs;

use capsa::test_utils::{self, Shell};
use capsa::{StatusStream, VmHandle, VmStatus};
use rustix::process::{Pid, Signal, kill_process};
use tokio_stream::StreamExt;

/// VMs that are started and dropped. In the lab one takes seconds, so there are fewer; the ignored test
/// takes as many as elsewhere, by hand: `cargo xtask lab -- target/debug/deps/release-… --ignored`.
const VMS: usize = 200;
const VMS_IN_LAB: usize = 6;
/// How much more memory the caller may have after them: the allocator keeps some.
const SLACK_KIB: u64 = 8 * 1024;

/// What this process holds.
#[derive(Debug, PartialEq)]
struct Held {
    descriptors: usize,
    threads: usize,
    children: usize,
}

fn held() -> Held {
    let tasks: Vec<_> = fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| task.unwrap().path())
        .collect();
    let children = tasks.iter().map(|task| {
        let children = fs::read_to_string(task.join("children")).unwrap_or_default();
        children.split_whitespace().count()
    });
    // Those of the runtime come and go with its work.
    let threads = tasks.iter().filter(|task| {
        let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
        !name.starts_with("tokio")
    });
    Held {
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        threads: threads.count(),
        children: children.sum(),
    }
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn ended(mut status: StatusStream) {
    while let Some(now) = status.next().await {
        if matches!(now, VmStatus::Exited(_)) {
            return;
        }
    }
    panic!("the end was not told");
}

/// Drops the VM and waits until it is gone.
async fn drop_and_wait(vm: VmHandle) {
    let status = vm.status_stream();
    drop(vm);
    ended(status).await;
}

async fn start_and_drop(number: usize) {
    let builder = test_utils::vm().await.memory_mib(64);
    match number % 20 {
        0 => drop_and_wait(Shell::start(builder).await.vm).await,
        1 => drop(builder.build().await.unwrap()),
        2 => {
            // Somewhere in the start.
            let vm = builder.build().await.unwrap();
            let status = vm.status_stream();
            tokio::select! {
                biased;
                started = vm.start() => started.unwrap(),
                () = yield_often() => {}
            }
            drop(vm);
            ended(status).await;
        }
        3 => {
            let vm = builder.start().await.unwrap();
            vm.kill().await.unwrap();
        }
        4 => {
            // Somewhere in the boot.
            let vm = builder.start().await.unwrap();
            let mut console = vm.console().unwrap();
            let mut byte = [0];
            tokio::io::AsyncReadExt::read_exact(&mut console, &mut byte)
                .await
                .unwrap();
            drop_and_wait(vm).await;
        }
        _ => drop_and_wait(builder.start().await.unwrap()).await,
    }
}

async fn yield_often() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn many_vms_leave_nothing_behind() {
    leave_nothing_behind(if std::env::var_os("CAPSA_LAB").is_some() {
        VMS_IN_LAB
    } else {
        VMS
    })
    .await;
}

#[tokio::test]
#[ignore = "minutes in the lab; see VMS"]
async fn soak_two_hundred_vms_leave_nothing_behind() {
    leave_nothing_behind(VMS).await;
}

async fn leave_nothing_behind(vms: usize) {
    // The first ones make what is made once a process.
    for number in 0..5 {
        start_and_drop(number).await;
    }
    let (before, before_kib) = (held(), resident_kib());

    for number in 0..vms {
        start_and_drop(number).await;
    }

    assert_eq!(held(), before);
    let after_kib = resident_kib();
    assert!(
        after_kib < before_kib + SLACK_KIB,
        "{before_kib} KiB, then {after_kib} KiB"
    );
}

#[tokio::test]
async fn a_drop_does_not_wait_for_the_guest() {
    let shell = Shell::start(test_utils::vm().await).await;
    let status = shell.vm.status_stream();
    // Whoever asked anything of the guest, or of the process that runs it, would wait for ever.
    let process = shell.vm.process_id().unwrap();
    let process = Pid::from_raw(i32::try_from(process).unwrap()).unwrap();
    kill_process(process, Signal::STOP).unwrap();

    drop(shell);

    ended(status).await;
}
