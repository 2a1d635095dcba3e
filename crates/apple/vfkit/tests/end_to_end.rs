//! The backend from `check` to the end of the VM, against a stand-in for vfkit.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

mod bench;

use std::fs;
use std::path::Path;
use std::time::Duration;

use bench::{Bench, exit, read_until};
use capsa_apple_vfkit::VfkitBackend;
use capsa_core::{
    BootPhase, BootSpec, DiskSpec, Error, HypervisorBackend, ShareAccess, ShareSpec, UefiBoot,
    VmExit, VmStatus, VsockSpec,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn is_alive(pid: u32) -> bool {
    let status = std::process::Command::new("/bin/kill")
        .args(["-0", &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .status();
    status.unwrap().success()
}

#[tokio::test]
async fn probe_tells_the_version() {
    let found = Bench::new().backend.probe().await;
    assert!(found.usable);
    assert_eq!(found.version.as_deref(), Some("0.6.1"));
}

#[tokio::test]
async fn absent_vfkit_is_named_with_the_way_to_install_it() {
    let backend = VfkitBackend::with_program("/nowhere/vfkit");
    let found = backend.probe().await;
    let error = backend.check(&Bench::new().spec("")).await.unwrap_err();
    assert!(!found.present && found.fix.unwrap().contains("brew install"));
    assert!(matches!(error, Error::BackendUnavailable { .. }), "{error}");
}

#[tokio::test]
async fn console_carries_both_ways_and_power_off_is_clean() {
    let bench = Bench::new();
    let mut vm = bench.launch(&bench.spec("")).await;
    let mut console = vm.console.take().unwrap();

    read_until(&mut console, "login: ").await;
    console.input.write_all(b"one\ttwo\n").await.unwrap();
    read_until(&mut console, "echo: one\ttwo\n").await;
    console.input.write_all(b"poweroff\n").await.unwrap();
    read_until(&mut console, "reboot: Power down\n").await;
    console.input.write_all(b"\n").await.unwrap();
    let mut rest = String::new();
    console.output.read_to_string(&mut rest).await.unwrap();

    assert_eq!(exit(&vm).await, VmExit::PoweredOff);
    assert_eq!(rest, "");
}

#[tokio::test]
async fn every_device_reaches_vfkit() {
    let bench = Bench::new();
    fs::write(bench.path("disk"), [0; 512]).unwrap();
    let mut spec = bench.spec("");
    spec.disks = vec![DiskSpec::new(bench.path("disk"))];
    let mut share = ShareSpec::new(bench.files.path(), "/mnt");
    share.access = ShareAccess::ReadWrite;
    spec.shares = vec![share];

    let vm = bench.launch(&spec).await;

    assert_eq!(*vm.handle.status().borrow(), VmStatus::Running);
    assert!(vm.handle.start_duration() > Duration::ZERO);
}

#[tokio::test]
async fn uefi_variable_store_is_made_and_kept() {
    let bench = Bench::new();
    let mut spec = bench.spec("");
    spec.boot = BootSpec::Uefi(UefiBoot {
        firmware: None,
        variable_store: Some(bench.path("variables")),
    });

    drop(bench.launch(&spec).await);
    fs::write(bench.path("variables"), b"kept").unwrap();
    drop(bench.launch(&spec).await);

    assert_eq!(fs::read(bench.path("variables")).unwrap(), b"kept");
}

#[tokio::test]
async fn pause_and_resume_are_followed_by_the_status() {
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("")).await;
    vm.handle.pause().await.unwrap();
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Paused);
    vm.handle.resume().await.unwrap();
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Running);
}

#[tokio::test]
async fn power_button_ends_the_guest_cleanly() {
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("")).await;
    // vfkit may be gone before its answer is read, which is a clean end, too.
    let pressed = vm.handle.power_button().await;
    assert_eq!(exit(&vm).await, VmExit::PoweredOff);
    assert!(matches!(
        pressed,
        Ok(()) | Err(Error::Ended(VmExit::PoweredOff) | Error::Io { .. })
    ));
}

#[tokio::test]
async fn guest_that_ignores_the_power_button_can_be_killed() {
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("ignore-stop")).await;
    vm.handle.power_button().await.unwrap();
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Stopping);
    vm.handle.kill().await.unwrap();
    assert_eq!(exit(&vm).await, VmExit::Killed);
    assert!(matches!(
        vm.handle.pause().await,
        Err(Error::Ended(VmExit::Killed))
    ));
}

#[tokio::test]
async fn refused_change_names_vfkits_reason_and_its_log() {
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("refuse-changes")).await;
    let error = vm.handle.pause().await.unwrap_err().to_string();
    assert!(error.contains("invalid state transition"), "{error}");
    assert!(
        error.contains("virtual machine parameters"),
        "no log: {error}"
    );
}

#[tokio::test]
async fn pause_that_does_not_happen_is_an_error() {
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("ignore-pause")).await;
    let error = vm.handle.pause().await.unwrap_err().to_string();
    assert!(error.contains("told to pause"), "{error}");
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Running);
}

#[tokio::test]
async fn guest_panic_is_told_from_a_power_off() {
    let bench = Bench::new();
    let mut vm = bench.launch(&bench.spec("")).await;
    let mut console = vm.console.take().unwrap();
    console.input.write_all(b"panic\n").await.unwrap();
    read_until(&mut console, "as you wish\n").await;
    console.input.write_all(b"\n").await.unwrap();
    match exit(&vm).await {
        VmExit::GuestPanic(panic) => assert_eq!(panic.message.unwrap(), "as you wish"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn vfkit_that_refuses_to_start_is_an_error_with_its_log() {
    let bench = Bench::new();
    match bench.refused(&bench.spec("refuse")).await {
        Error::Start {
            phase: BootPhase::Monitor,
            reason,
            ..
        } => {
            assert!(reason.contains("exited with status 1"), "{reason}");
            assert!(reason.contains("VZErrorDomain"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn vfkit_that_dies_at_once_is_an_error_with_signal_and_log() {
    let bench = Bench::new();
    let error = bench.refused(&bench.spec("die-at-once")).await.to_string();
    assert!(error.contains("SIGABRT"), "{error}");
    assert!(error.contains("virtual machine parameters"), "{error}");
}

#[tokio::test]
async fn vfkit_that_dies_later_is_a_monitor_failure_with_its_last_words() {
    let bench = Bench::new();
    let started = bench.backend.launch(&bench.spec("die-later")).await;
    // It may be gone before it was asked whether it runs.
    let text = match started {
        Err(error) => error.to_string(),
        Ok(vm) => match exit(&vm).await {
            VmExit::MonitorFailure(failure) => failure.to_string(),
            other => panic!("{other:?}"),
        },
    };
    assert!(text.contains("exited with status 1"), "{text}");
    assert!(text.contains("it died later"), "{text}");
}

#[tokio::test]
async fn failure_while_running_is_a_monitor_failure_with_its_last_words() {
    let bench = Bench::new();
    let mut vm = bench.launch(&bench.spec("")).await;
    let mut console = vm.console.take().unwrap();
    console.input.write_all(b"fail\n").await.unwrap();
    match exit(&vm).await {
        VmExit::MonitorFailure(failure) => {
            assert_eq!(failure.reason, "vfkit exited with status 1");
            assert!(failure.last_words.contains("the guest asked for it"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn vfkit_that_hangs_is_a_timeout_with_its_log_and_is_gone() {
    let bench = Bench::new();
    let mut spec = bench.spec("hang");
    spec.start_timeout = Some(Duration::from_millis(500));
    match bench.refused(&spec).await {
        Error::Timeout { operation, .. } => assert!(operation.contains("about to hang")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn garbage_and_nonsense_in_place_of_answers_are_errors() {
    let bench = Bench::new();
    for (behaviour, word) in [("garbage", "HTTP"), ("nonsense", "none of vfkit's")] {
        let error = bench.refused(&bench.spec(behaviour)).await.to_string();
        assert!(error.contains(word), "{behaviour}: {error}");
    }
}

#[tokio::test]
async fn vfkit_that_takes_requests_and_never_answers_is_a_timeout() {
    let bench = Bench::new();
    let mut spec = bench.spec("silent");
    spec.start_timeout = Some(Duration::from_millis(500));
    assert!(matches!(bench.refused(&spec).await, Error::Timeout { .. }));
}

#[tokio::test]
async fn dropped_handle_ends_vfkit_and_frees_the_run_directory() {
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("")).await;
    let pid = vm.handle.process_id().unwrap();
    let mut status = vm.handle.status();
    drop(vm);
    let ended = status.wait_for(|status| status.exit().is_some()).await;
    assert_eq!(ended.unwrap().exit(), Some(&VmExit::Killed));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn vsock_carries_streams_in_both_directions() {
    let bench = Bench::new();
    let mut spec = bench.spec("");
    spec.vsock = Some(VsockSpec {
        cid: None,
        listen_ports: vec![5000],
        connect_ports: vec![6000],
    });
    let mut vm = bench.launch(&spec).await;
    let mut console = vm.console.take().unwrap();

    let mut out = vm.handle.vsock_connect(6000).await.unwrap();
    out.write_all(b"to the guest").await.unwrap();
    out.shutdown().await.unwrap();
    let mut echoed = String::new();
    out.read_to_string(&mut echoed).await.unwrap();

    let mut listener = vm.handle.vsock_listen(5000).await.unwrap();
    assert!(vm.handle.vsock_listen(5000).await.is_err(), "taken twice");
    console.input.write_all(b"dial 5000\n").await.unwrap();
    let mut incoming = listener.accept().await.unwrap();
    let mut heard = String::new();
    incoming.read_to_string(&mut heard).await.unwrap();
    incoming.write_all(b"good day").await.unwrap();
    drop(incoming);
    read_until(&mut console, "host said: good day\n").await;

    assert_eq!(echoed, "to the guest");
    assert_eq!(heard, "hello");
    drop(listener);
    let again = vm.handle.vsock_listen(5000).await;
    assert!(
        again.is_ok(),
        "a port comes back when its listener is dropped"
    );
    vm.handle.kill().await.unwrap();
    let ended = again.unwrap().accept().await;
    assert!(matches!(ended, Err(Error::Ended(VmExit::Killed))));
}

#[tokio::test]
async fn vsock_port_that_was_not_named_is_refused() {
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("")).await;
    let connect = vm.handle.vsock_connect(1).await.err().unwrap().to_string();
    let listen = vm.handle.vsock_listen(1).await.err().unwrap().to_string();
    assert!(connect.contains("connect_ports") && listen.contains("listen_ports"));
}

#[tokio::test]
async fn unread_console_does_not_hold_up_the_end() {
    let bench = Bench::new();
    let mut vm = bench.launch(&bench.spec("")).await;
    let mut console = vm.console.take().unwrap();
    console
        .input
        .write_all(b"fill 3000\nfill 3000\npoweroff\n\n")
        .await
        .unwrap();
    assert_eq!(exit(&vm).await, VmExit::PoweredOff);
}

/// Not a test of its own: the caller that `no_orphan_is_left_when_the_caller_is_killed` kills.
#[tokio::test]
async fn caller_that_is_to_be_killed() {
    let Ok(report) = std::env::var("CAPSA_TEST_REPORT_PID") else {
        return;
    };
    let bench = Bench::new();
    let vm = bench.launch(&bench.spec("")).await;
    let pid = vm.handle.process_id().unwrap().to_string();
    fs::write(Path::new(&report).with_extension("partial"), pid).unwrap();
    fs::rename(Path::new(&report).with_extension("partial"), &report).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn no_orphan_is_left_when_the_caller_is_killed() {
    // Arrange: a caller in a process of its own, with a VM.
    let folder = TempDir::new().unwrap();
    let report = folder.path().join("pid");
    let mut caller = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "caller_that_is_to_be_killed"])
        .env("CAPSA_TEST_REPORT_PID", &report)
        .env("TMPDIR", folder.path())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let appeared = async {
        while !report.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), appeared)
        .await
        .unwrap();
    let vfkit: u32 = fs::read_to_string(&report).unwrap().parse().unwrap();
    assert!(is_alive(vfkit));

    // Act
    caller.kill().await.unwrap();

    // Assert
    let gone = async {
        while is_alive(vfkit) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .unwrap();
}
