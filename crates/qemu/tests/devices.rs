//! The process that runs a VM's devices for QEMU: that it serves, and that it goes.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use std::path::Path;
use std::time::Duration;

use capsa_core::{
    BackendVmHandle, BootSpec, ConsoleIo, Error, HypervisorBackend, LaunchedVm, LinuxBoot,
    MemorySize, VmExit, VmSpec, VsockSpec,
};
use capsa_guest::discover::SearchPath;
use capsa_qemu::QemuBackend;
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Software emulation on a busy machine: generous, and only there so that a hang is a failure.
const LIMIT: Duration = Duration::from_secs(120);

/// A machine with a socket device.
fn spec() -> VmSpec {
    let search = SearchPath::from_environment();
    let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel: search.kernel(None).unwrap().path,
        initramfs: Some(search.initramfs(None).unwrap().path),
        command_line: "console=ttyS0 quiet panic=-1".to_owned(),
    }));
    spec.memory = MemorySize::mib(128);
    spec.vsock = Some(VsockSpec::default());
    spec
}

struct Vm {
    handle: Box<dyn BackendVmHandle>,
    console: ConsoleIo,
    seen: Vec<u8>,
}

impl Vm {
    async fn start(spec: &VmSpec) -> Self {
        let backend = QemuBackend::new();
        backend.check(spec).await.unwrap();
        let LaunchedVm {
            handle, console, ..
        } = backend.launch(spec).await.unwrap();
        Self {
            handle,
            console: console.unwrap(),
            seen: Vec::new(),
        }
    }

    /// Has the guest's shell run `line`, and waits until the console shows `text`.
    async fn run(&mut self, line: &str, text: &str) {
        let line = format!("{line}\n");
        self.console.input.write_all(line.as_bytes()).await.unwrap();
        let wait = async {
            while !String::from_utf8_lossy(&self.seen).contains(text) {
                let count = self.console.output.read_buf(&mut self.seen).await.unwrap();
                assert!(count > 0, "{}", String::from_utf8_lossy(&self.seen));
            }
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            panic!("no {text:?} in {}", String::from_utf8_lossy(&self.seen));
        }
    }
}

async fn exit_of(handle: &dyn BackendVmHandle) -> VmExit {
    let mut status = handle.status();
    let wait = status.wait_for(|status| status.exit().is_some());
    let status = tokio::time::timeout(LIMIT, wait).await.unwrap();
    status.unwrap().exit().cloned().unwrap()
}

/// The device processes that `caller` has started.
fn device_processes(caller: u32) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{caller}/task")).unwrap();
    let children: String = tasks
        .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok())
        .collect();
    children
        .split_whitespace()
        .filter(|id| {
            std::fs::read(format!("/proc/{id}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"capsa-devices"))
        })
        .filter_map(|id| Pid::from_raw(id.parse().ok()?))
        .collect()
}

/// Runs `test` in a process of its own, whose children are this test's alone.
fn alone(test: &str) {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(VICTIM, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Set in a copy of this test's process.
const VICTIM: &str = "CAPSA_QEMU_TEST_VICTIM";

fn is_victim() -> bool {
    std::env::var_os(VICTIM).is_some()
}

/// Why a port of the guest that nobody listens on cannot be connected to.
async fn refusal(vm: &Vm) -> Option<Error> {
    let connected = tokio::time::timeout(LIMIT, vm.handle.vsock_connect(1234));
    connected.await.unwrap().err()
}

#[tokio::test]
async fn guest_refuses_a_connection_that_nobody_listens_for_and_goes_on_after_a_pause() {
    // Arrange
    let mut vm = Vm::start(&spec()).await;
    vm.run("echo up-$((1+1))", "up-2").await;

    // Act: there and back through both rings, each time.
    let before = refusal(&vm).await;
    vm.handle.pause().await.unwrap();
    vm.handle.resume().await.unwrap();
    let after = refusal(&vm).await;

    // Assert
    for refused in [before, after] {
        let Some(Error::Io { source, .. }) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
    }
}

#[test]
fn vm_whose_device_process_is_killed_fails_with_the_reason() {
    alone("victim_whose_device_process_is_killed");
}

#[tokio::test]
async fn victim_whose_device_process_is_killed() {
    if !is_victim() {
        return;
    }
    let vm = Vm::start(&spec()).await;
    let [process] = device_processes(std::process::id())[..] else {
        panic!("not one device process")
    };

    rustix::process::kill_process(process, Signal::KILL).unwrap();

    let VmExit::MonitorFailure(failure) = exit_of(&*vm.handle).await else {
        panic!("another end")
    };
    assert!(failure.reason.contains("device process"), "{failure}");
    assert!(failure.reason.contains("SIGKILL"), "{failure}");
}

#[test]
fn dropped_handle_ends_the_device_process() {
    alone("victim_that_drops_its_handle");
}

#[tokio::test]
async fn victim_that_drops_its_handle() {
    if !is_victim() {
        return;
    }
    let vm = Vm::start(&spec()).await;
    let mut status = vm.handle.status();
    let before = device_processes(std::process::id());

    drop(vm);

    let gone = status.wait_for(|status| status.exit().is_some()).await;
    assert_eq!(gone.unwrap().exit(), Some(&VmExit::Killed));
    assert_eq!(before.len(), 1);
    assert!(device_processes(std::process::id()).is_empty());
}

/// The other half of [`caller_that_is_killed_takes_the_device_process_along`].
#[tokio::test]
async fn victim_that_waits_to_be_killed() {
    if !is_victim() {
        return;
    }
    let _vm = Vm::start(&spec()).await;
    println!("VICTIM-IS-UP");
    std::future::pending::<()>().await;
}

#[test]
fn caller_that_is_killed_takes_the_device_process_along() {
    // Arrange
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim_that_waits_to_be_killed", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(victim.stdout.take().unwrap());
    let up = std::io::BufRead::lines(output).any(|line| line.unwrap().contains("VICTIM-IS-UP"));
    assert!(up);
    let [process] = device_processes(victim.id())[..] else {
        panic!("not one device process")
    };
    let process = rustix::process::pidfd_open(process, PidfdFlags::empty()).unwrap();

    // Act: no chance to clean up.
    victim.kill().unwrap();
    victim.wait().unwrap();

    // Assert: the process's descriptor becomes readable at its end.
    let mut poll = [rustix::event::PollFd::new(
        &process,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut poll, Some(&limit)).unwrap(), 1);
    assert!(!Path::new("/proc").join(victim.id().to_string()).exists());
}
