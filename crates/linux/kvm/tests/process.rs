//! A monitor in a process of its own, on a KVM that runs ordinary kernels (the lab's, where the
//! host's does not).
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of a test fails the test"
)]

use std::time::Duration;

use capsa_core::{
    BootSpec, ConsoleInput, ConsoleSpec, HypervisorBackend, Isolation, LaunchedVm, LinuxBoot,
    VmExit, VmSpec, VmStatus,
};
use capsa_guest::discover::SearchPath;
use capsa_linux_kvm::KvmBackend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn spec(isolation: Isolation) -> VmSpec {
    let search = SearchPath::from_environment();
    let kernel = search
        .kernel(None)
        .expect("`cargo xtask setup` provides a kernel");
    let initramfs = search
        .initramfs(None)
        .expect("`cargo xtask setup` provides an initramfs");
    let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel: kernel.path,
        initramfs: Some(initramfs.path),
        command_line: "console=hvc0 quiet capsa.console=raw".to_owned(),
    }));
    spec.console = ConsoleSpec {
        input: ConsoleInput::Virtio,
        ..ConsoleSpec::default()
    };
    spec.isolation = isolation;
    spec
}

/// Starts a VM, has its shell run `script`, and gives what it printed and how it ended.
async fn run(isolation: Isolation, script: &str) -> (String, VmExit, Vec<String>) {
    let backend = KvmBackend::new();
    let spec = spec(isolation);
    backend.check(&spec).await.unwrap();
    let LaunchedVm {
        handle,
        console,
        warnings,
    } = backend.launch(&spec).await.unwrap();
    let mut console = console.unwrap();
    console.input.write_all(script.as_bytes()).await.unwrap();
    let mut output = Vec::new();
    console.output.read_to_end(&mut output).await.unwrap();
    let exit = ended(&*handle).await;
    let warnings = warnings.into_iter().map(|warning| warning.0).collect();
    (
        String::from_utf8_lossy(&output).into_owned(),
        exit,
        warnings,
    )
}

async fn ended(handle: &dyn capsa_core::BackendVmHandle) -> VmExit {
    let mut status = handle.status();
    let last = status
        .wait_for(|status| status.exit().is_some())
        .await
        .unwrap();
    last.exit().cloned().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_answers_and_powers_off() {
    let (output, exit, _) = run(
        Isolation::BestEffort,
        "echo 6 times 7 is $((6*7)); poweroff -f\n",
    )
    .await;
    assert!(output.contains("6 times 7 is 42"), "{output}");
    assert_eq!(exit, VmExit::PoweredOff);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_on_a_thread_runs_the_same_guest_and_says_that_it_is_not_confined() {
    let (output, exit, warnings) = run(
        Isolation::InProcess,
        "echo on a $((1*1)) thread; reboot -f\n",
    )
    .await;
    assert!(output.contains("on a 1 thread"), "{output}");
    assert_eq!(exit, VmExit::Reset);
    assert!(
        warnings.iter().any(|text| text.contains("unconfined")),
        "{warnings:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_guest_s_kernel_is_told_with_its_message() {
    let (output, exit, _) = run(Isolation::BestEffort, "echo c > /proc/sysrq-trigger\n").await;
    let VmExit::GuestPanic(panic) = exit else {
        panic!("{exit:?}\n{output}")
    };
    assert!(panic.message.unwrap().contains("sysrq"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_somebody_kills_is_a_failure_and_the_caller_lives_on() {
    // Arrange
    let backend = KvmBackend::new();
    let vm = backend.launch(&spec(Isolation::BestEffort)).await.unwrap();
    let id = vm.handle.process_id().unwrap();

    // Act
    let killed = std::process::Command::new("kill")
        .args(["-9", &id.to_string()])
        .status();
    assert!(killed.unwrap().success());

    // Assert
    let exit = ended(&*vm.handle).await;
    let VmExit::MonitorFailure(failure) = exit else {
        panic!("{exit:?}")
    };
    assert!(failure.reason.contains("signal 9"), "{failure}");
    assert!(vm.handle.pause().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_guest_is_silent_until_it_goes_on() {
    // Arrange
    let backend = KvmBackend::new();
    let LaunchedVm {
        handle, console, ..
    } = backend.launch(&spec(Isolation::BestEffort)).await.unwrap();
    let mut console = console.unwrap();
    console
        .input
        .write_all(b"while :; do echo tick; done\n")
        .await
        .unwrap();
    let mut byte = [0; 4096];
    assert!(console.output.read(&mut byte).await.unwrap() > 0);

    // Act
    handle.pause().await.unwrap();
    let status = handle.status().borrow().clone();
    // What was on its way comes to an end. There is no event for silence to wait for.
    while let Ok(read) =
        tokio::time::timeout(Duration::from_secs(2), console.output.read(&mut byte)).await
    {
        assert!(read.unwrap() > 0, "the console ended");
    }

    // Assert
    assert_eq!(status, VmStatus::Paused);
    handle.resume().await.unwrap();
    assert!(console.output.read(&mut byte).await.unwrap() > 0);
    handle.kill().await.unwrap();
    assert_eq!(ended(&*handle).await, VmExit::Killed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_button_shuts_the_guest_down() {
    let backend = KvmBackend::new();
    let LaunchedVm {
        handle, console, ..
    } = backend.launch(&spec(Isolation::BestEffort)).await.unwrap();
    let mut console = console.unwrap();
    console.input.write_all(b"echo up\n").await.unwrap();
    let mut seen = Vec::new();
    // Ahead of it there may be messages of the kernel, when nobody listens to the button yet.
    while !seen.ends_with(b"up\n") {
        seen.push(console.output.read_u8().await.unwrap());
    }

    handle.power_button().await.unwrap();

    assert_eq!(ended(&*handle).await, VmExit::PoweredOff);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_handle_ends_the_monitor() {
    let backend = KvmBackend::new();
    let vm = backend.launch(&spec(Isolation::BestEffort)).await.unwrap();
    let mut status = vm.handle.status();
    let process = format!("/proc/{}", vm.handle.process_id().unwrap());

    drop(vm);

    let exit = status
        .wait_for(|status| status.exit().is_some())
        .await
        .unwrap()
        .clone();
    assert_eq!(exit, VmStatus::Exited(VmExit::Killed));
    assert!(!std::path::Path::new(&process).exists());
}

fn status_of(task: &str, field: &str) -> String {
    let status = std::fs::read_to_string(format!("{task}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field));
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_monitor_is_confined_in_every_layer_and_on_every_thread() {
    // Arrange
    let backend = KvmBackend::new();
    let vm = backend.launch(&spec(Isolation::Required)).await.unwrap();
    let process = format!("/proc/{}", vm.handle.process_id().unwrap());

    // Act
    let mut threads = 0;
    for task in std::fs::read_dir(format!("{process}/task")).unwrap() {
        let task = task.unwrap().path();
        let task = task.to_str().unwrap();
        threads += 1;
        let name = std::fs::read_to_string(format!("{task}/comm")).unwrap();
        assert_eq!(status_of(task, "Seccomp:"), "2", "{name}");
        assert_eq!(status_of(task, "NoNewPrivs:"), "1", "{name}");
        assert_eq!(status_of(task, "CapPrm:"), "0000000000000000", "{name}");
    }
    let namespace =
        |process: &str, kind| std::fs::read_link(format!("{process}/ns/{kind}")).unwrap();

    // Assert: the first thread, devices, serial port, one vCPU
    assert_eq!(threads, 4);
    for kind in ["user", "mnt", "net", "ipc"] {
        assert_ne!(namespace(&process, kind), namespace("/proc/self", kind));
    }
    let mut root = std::fs::read_dir(format!("{process}/root/")).unwrap();
    assert!(root.next().is_none(), "its root is not empty");
    assert!(vm.warnings.is_empty(), "{:?}", vm.warnings);
    vm.handle.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_its_filter_ends_is_a_failure_with_its_last_words() {
    // Arrange: the signal that the kernel sends for a call that is not allowed
    let backend = KvmBackend::new();
    let vm = backend.launch(&spec(Isolation::BestEffort)).await.unwrap();
    let id = vm.handle.process_id().unwrap();

    // Act
    let killed = std::process::Command::new("kill")
        .args(["-s", "SYS", &id.to_string()])
        .status();
    assert!(killed.unwrap().success());

    // Assert
    let VmExit::MonitorFailure(failure) = ended(&*vm.handle).await else {
        panic!("it did not fail")
    };
    assert!(
        failure.last_words.contains("its filter does not allow"),
        "{failure}"
    );
}
