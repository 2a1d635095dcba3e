//! Both backends on an engine, from `check` to the end of the VM: the daemon's real server, protocol
//! and process, and the same engine in this process.
#![cfg(unix)]
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "a test")]

#[path = "../stand-in/engine.rs"]
mod engine;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa_apple_vz::EngineBackend;
use capsa_apple_vzd::subprocess_backend;
use capsa_core::{
    BackendKind, BootSpec, ConsoleInput, ConsoleIo, Error, HypervisorBackend, LaunchedVm,
    LinuxBoot, MemorySize, NetworkSpec, VmExit, VmSpec, VmStatus, VsockSpec,
};
use engine::StandInEngine;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const STAND_IN: &str = env!("CARGO_BIN_EXE_stand-in-vzd");

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = TempDir::new().unwrap();
        let mut kernel = vec![0; 1024];
        if cfg!(target_arch = "aarch64") {
            kernel[56..60].copy_from_slice(b"ARM\x64");
        } else {
            kernel[0x202..0x206].copy_from_slice(b"HdrS");
        }
        fs::write(files.path().join("kernel"), kernel).unwrap();
        Self(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn spec(&self, behaviour: &str) -> VmSpec {
        let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
            kernel: self.path("kernel"),
            initramfs: None,
            command_line: format!("console=hvc0 stand-in={behaviour}"),
        }));
        spec.console.input = ConsoleInput::Virtio;
        spec
    }

    /// A program that is no daemon.
    fn script(&self, text: &str) -> PathBuf {
        let path = self.path("script");
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

fn daemon() -> Box<dyn HypervisorBackend> {
    Box::new(subprocess_backend(Some(STAND_IN.into())))
}

fn native() -> Box<dyn HypervisorBackend> {
    Box::new(EngineBackend::new(BackendKind::MacosNative, StandInEngine))
}

fn both() -> [Box<dyn HypervisorBackend>; 2] {
    [daemon(), native()]
}

async fn read_until(console: &mut ConsoleIo, text: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&all).contains(text) {
        let count = console.output.read(&mut buffer).await.unwrap();
        if count == 0 {
            panic!("{text:?} did not come: {}", String::from_utf8_lossy(&all));
        }
        all.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(all).unwrap()
}

async fn exit(vm: &LaunchedVm) -> VmExit {
    let mut status = vm.handle.status();
    let status = status.wait_for(|status| status.exit().is_some()).await;
    status.unwrap().exit().unwrap().clone()
}

/// Types `line` and waits for the end.
async fn exit_after(backend: &dyn HypervisorBackend, spec: &VmSpec, line: &str) -> VmExit {
    let mut vm = backend.launch(spec).await.unwrap();
    let mut console = vm.console.take().unwrap();
    console.input.write_all(line.as_bytes()).await.unwrap();
    exit(&vm).await
}

async fn refused(backend: &dyn HypervisorBackend, spec: &VmSpec) -> Error {
    match backend.launch(spec).await {
        Err(error) => error,
        Ok(_) => panic!("it started"),
    }
}

fn is_alive(pid: u32) -> bool {
    let status = std::process::Command::new("/bin/kill")
        .args(["-0", &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .status();
    status.unwrap().success()
}

#[tokio::test]
async fn probe_tells_the_version_of_macos() {
    for backend in both() {
        let found = backend.probe().await;
        assert!(found.usable, "{found:?}");
        assert_eq!(found.version.as_deref(), Some("15.1"));
    }
}

#[tokio::test]
async fn console_carries_both_ways_to_the_last_byte() {
    for backend in both() {
        let mut vm = backend.launch(&Files::new().spec("")).await.unwrap();
        let mut console = vm.console.take().unwrap();
        read_until(&mut console, "login: ").await;
        console
            .input
            .write_all(b"one\ttwo\npoweroff\n")
            .await
            .unwrap();
        let mut rest = String::new();
        console.output.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "echo: one\ttwo\nreboot: Power down\n");
        assert_eq!(exit(&vm).await, VmExit::PoweredOff);
    }
}

#[tokio::test]
async fn ends_are_told_apart() {
    let files = Files::new();
    let spec = files.spec("");
    for backend in both() {
        let panic = exit_after(&*backend, &spec, "panic\n").await;
        assert!(
            matches!(panic, VmExit::GuestPanic(p) if p.message.as_deref() == Some("as you wish"))
        );
        let failure = exit_after(&*backend, &spec, "fail\n").await;
        assert!(
            matches!(&failure, VmExit::MonitorFailure(f) if f.reason.contains("Internal")),
            "{failure:?}"
        );
        let vm = backend.launch(&spec).await.unwrap();
        vm.handle.power_button().await.unwrap();
        assert_eq!(exit(&vm).await, VmExit::PoweredOff);
        let vm = backend.launch(&spec).await.unwrap();
        vm.handle.kill().await.unwrap();
        assert_eq!(exit(&vm).await, VmExit::Killed);
        assert!(matches!(
            vm.handle.pause().await,
            Err(Error::Ended(VmExit::Killed))
        ));
    }
}

#[tokio::test]
async fn pause_resume_save_and_restore_follow_the_state() {
    let files = Files::new();
    let saved = files.path("saved");
    let spec = files.spec("");
    let vm = daemon().launch(&spec).await.unwrap();
    assert!(matches!(
        vm.handle.resume().await,
        Err(Error::InvalidState { .. })
    ));
    vm.handle.pause().await.unwrap();
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Paused);
    vm.handle.save_state(&saved).await.unwrap();
    vm.handle.resume().await.unwrap();
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Running);
    drop(vm);

    let restoring = subprocess_backend(Some(STAND_IN.into())).restoring(&saved);
    let mut vm = restoring.launch(&spec).await.unwrap();
    read_until(vm.console.as_mut().unwrap(), "restored: ").await;
}

#[tokio::test]
async fn balloon_leaves_the_guest_what_is_not_asked_for() {
    let files = Files::new();
    for backend in both() {
        let mut spec = files.spec("");
        let without = backend.launch(&spec).await.unwrap();
        let refused = without.handle.set_balloon_target(0).await.unwrap_err();
        assert!(refused.to_string().contains("no balloon"), "{refused}");

        spec.memory = MemorySize::mib(256);
        spec.balloon = true;
        let mut vm = backend.launch(&spec).await.unwrap();
        let mut console = vm.console.take().unwrap();
        for (target, kept) in [
            (MemorySize::mib(64), "memory: 192 MiB\n"),
            (MemorySize::mib(0), "memory: 256 MiB\n"),
            (MemorySize::gib(9), "memory: 0 MiB\n"),
        ] {
            let bytes = target.as_bytes();
            vm.handle.set_balloon_target(bytes).await.unwrap();
            console.input.write_all(b"memory\n").await.unwrap();
            read_until(&mut console, kept).await;
        }
    }
}

#[tokio::test]
async fn vsock_streams_are_handed_over_in_both_directions() {
    let files = Files::new();
    for backend in both() {
        let mut spec = files.spec("");
        spec.vsock = Some(VsockSpec::default());
        let mut vm = backend.launch(&spec).await.unwrap();
        let mut console = vm.console.take().unwrap();

        let mut out = vm.handle.vsock_connect(1024).await.unwrap();
        out.write_all(b"to the guest").await.unwrap();
        out.shutdown().await.unwrap();
        let mut echoed = String::new();
        out.read_to_string(&mut echoed).await.unwrap();
        assert_eq!(echoed, "to the guest");
        let refused = vm.handle.vsock_connect(1025).await.err().unwrap();
        assert!(refused.to_string().contains("nobody listens"), "{refused}");

        let mut listener = vm.handle.vsock_listen(7).await.unwrap();
        assert!(vm.handle.vsock_listen(7).await.is_err(), "taken twice");
        console.input.write_all(b"dial 7\n").await.unwrap();
        let mut incoming = listener.accept().await.unwrap();
        let mut heard = String::new();
        incoming.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "hello");
        incoming.write_all(b"good day").await.unwrap();
        drop(incoming);
        read_until(&mut console, "host said: good day\n").await;

        drop(listener);
        let mut again = vm.handle.vsock_listen(7).await.unwrap();
        vm.handle.kill().await.unwrap();
        assert!(matches!(
            again.accept().await,
            Err(Error::Ended(VmExit::Killed))
        ));
    }
}

#[tokio::test]
async fn vsock_without_a_device_is_refused() {
    let vm = daemon().launch(&Files::new().spec("")).await.unwrap();
    assert!(matches!(
        vm.handle.vsock_connect(2).await,
        Err(Error::InvalidState { .. })
    ));
    assert!(vm.handle.vsock_listen(2).await.is_err());
}

#[tokio::test]
async fn frames_are_carried_one_a_datagram() {
    let files = Files::new();
    let mut spec = files.spec("");
    spec.network = Some(NetworkSpec::default());
    let mut vm = daemon().launch(&spec).await.unwrap();
    let mut console = vm.console.take().unwrap();
    let network = UnixDatagram::from(vm.handle.take_network_socket().unwrap());

    console.input.write_all(b"frame who-has\n").await.unwrap();
    let (network, frame) = tokio::task::spawn_blocking(move || {
        let mut frame = vec![0; 65536];
        let length = network.recv(&mut frame).unwrap();
        frame.truncate(length);
        network.send(b"is-at").unwrap();
        (network, frame)
    })
    .await
    .unwrap();

    assert_eq!(frame, b"who-has");
    read_until(&mut console, "frame: is-at\n").await;
    drop(network);
}

#[tokio::test]
async fn lost_network_does_not_end_the_guest() {
    let mut vm = daemon().launch(&Files::new().spec("")).await.unwrap();
    let mut console = vm.console.take().unwrap();
    console
        .input
        .write_all(b"cut\nstill there\n")
        .await
        .unwrap();
    read_until(&mut console, "echo: still there\n").await;
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Running);
}

#[tokio::test]
async fn refused_start_is_an_error_in_the_frameworks_words() {
    for backend in both() {
        let error = refused(&*backend, &Files::new().spec("refuse")).await;
        assert!(matches!(error, Error::Start { .. }), "{error}");
        assert!(
            error.to_string().contains("Invalid virtual machine"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn crash_at_the_start_is_an_error_with_the_daemons_last_words() {
    let error = refused(&*daemon(), &Files::new().spec("crash-at-start"))
        .await
        .to_string();
    assert!(error.contains("SIGABRT"), "{error}");
    assert!(error.contains("crashes at the start"), "{error}");
}

#[tokio::test]
async fn crash_while_running_is_a_monitor_failure_with_the_daemons_last_words() {
    let end = exit_after(&*daemon(), &Files::new().spec(""), "crash\n").await;
    match end {
        VmExit::MonitorFailure(failure) => {
            assert!(failure.reason.contains("SIGABRT"), "{}", failure.reason);
            assert!(failure.last_words.contains("as it was told to"));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn start_that_hangs_is_a_timeout() {
    let mut spec = Files::new().spec("hang");
    let files = Files::new();
    if let BootSpec::Linux(boot) = &mut spec.boot {
        boot.kernel = files.path("kernel");
    }
    spec.start_timeout = Some(Duration::from_millis(300));
    for backend in both() {
        assert!(matches!(
            refused(&*backend, &spec).await,
            Error::Timeout { .. }
        ));
    }
}

#[tokio::test]
async fn programs_that_are_no_daemon_are_told_apart() {
    let files = Files::new();
    let cases = [
        ("exit 3", "exited with status 3"),
        (
            "echo 'cannot find a library' >&2; exit 1",
            "cannot find a library",
        ),
        ("printf 'SSH-2.0-OpenSSH' >&0", "not capsa-vzd"),
        ("printf 'capsavzd\\011\\0\\0\\0' >&0", "different versions"),
        (
            "printf 'capsavzd\\001\\0\\0\\0\\377\\377\\377\\377\\377' >&0",
            "too long",
        ),
        ("exec cat <&0 >&0", "cannot be read"),
    ];
    for (script, expected) in cases {
        let backend = subprocess_backend(Some(files.script(script)));
        let found = backend.probe().await;
        assert!(!found.usable);
        assert!(
            found.reason.contains(expected),
            "{script}: {}",
            found.reason
        );
    }
}

#[tokio::test]
async fn absent_daemon_is_named_with_the_ways_to_give_it() {
    let backend = subprocess_backend(Some("/nowhere/capsa-vzd".into()));
    let error = backend.check(&Files::new().spec("")).await;
    let found = backend.probe().await;
    assert!(found.fix.unwrap().contains("CAPSA_VZD"));
    assert!(error.is_err());
}

#[tokio::test]
async fn what_this_mac_cannot_do_is_refused_before_the_start() {
    let files = Files::new();
    let mut spec = files.spec("");
    spec.cpus = 9;
    let error = daemon().check(&spec).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported { setting, .. } if setting == "9 CPUs"),
        "{error}"
    );
}

#[tokio::test]
async fn dropped_handle_ends_the_daemon() {
    let vm = daemon().launch(&Files::new().spec("")).await.unwrap();
    let pid = vm.handle.process_id().unwrap();
    let mut status = vm.handle.status();
    drop(vm);
    let ended = status.wait_for(|status| status.exit().is_some()).await;
    assert_eq!(ended.unwrap().exit(), Some(&VmExit::Killed));
    assert!(!is_alive(pid));
}

/// Not a test of its own: the caller that `daemon_ends_when_the_caller_is_killed` kills.
#[tokio::test]
async fn caller_that_is_to_be_killed() {
    let Ok(report) = std::env::var("CAPSA_TEST_REPORT_PID") else {
        return;
    };
    let files = Files::new();
    let vm = daemon().launch(&files.spec("")).await.unwrap();
    let pid = vm.handle.process_id().unwrap().to_string();
    fs::write(Path::new(&report).with_extension("partial"), pid).unwrap();
    fs::rename(Path::new(&report).with_extension("partial"), &report).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn daemon_ends_when_the_caller_is_killed() {
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
    let until = async |wanted: &dyn Fn() -> bool| {
        let wait = async {
            while !wanted() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .unwrap();
    };
    until(&|| report.exists()).await;
    let daemon: u32 = fs::read_to_string(&report).unwrap().parse().unwrap();
    assert!(is_alive(daemon));

    caller.kill().await.unwrap();

    until(&|| !is_alive(daemon)).await;
}
