//! VMs on QEMU with the default guest kernel and initramfs. They fail where those are missing
//! (`cargo xtask setup` makes them), and never skip.
#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail as tests do"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use capsa_core::{
    BackendVmHandle, BootSpec, ConsoleInput, ConsoleIo, Error, HypervisorBackend, LaunchedVm,
    LinuxBoot, MemorySize, VmExit, VmSpec, VmStatus,
};
use capsa_guest::discover::SearchPath;
use capsa_qemu::QemuBackend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Software emulation on a busy machine: generous, and only there so that a hang is a failure.
const LIMIT: Duration = Duration::from_secs(120);

fn spec() -> VmSpec {
    let search = SearchPath::from_environment();
    let found = |found: Result<capsa_guest::discover::Found, _>| match found {
        Ok(found) => found.path,
        Err(error) => panic!("{error}"),
    };
    let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
        kernel: found(search.kernel(None)),
        initramfs: Some(found(search.initramfs(None))),
        command_line: "console=ttyS0 quiet panic=-1".to_owned(),
    }));
    spec.memory = MemorySize::mib(128);
    spec
}

fn boot_mut(spec: &mut VmSpec) -> &mut LinuxBoot {
    match &mut spec.boot {
        BootSpec::Linux(boot) => boot,
        other => panic!("{other:?}"),
    }
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

    async fn type_line(&mut self, line: &str) {
        self.console.input.write_all(line.as_bytes()).await.unwrap();
        self.console.input.write_all(b"\n").await.unwrap();
    }

    /// Reads the console until it shows `text`.
    async fn wait_for(&mut self, text: &str) {
        let wait = async {
            while !String::from_utf8_lossy(&self.seen).contains(text) {
                let count = self.console.output.read_buf(&mut self.seen).await.unwrap();
                assert!(count > 0, "the console ended:\n{}", self.text());
            }
        };
        if tokio::time::timeout(LIMIT, wait).await.is_err() {
            panic!("no {text:?} in:\n{}", self.text());
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Reads the console to its end, and waits for the VM's.
    async fn exit(&mut self) -> VmExit {
        let wait = async {
            self.console
                .output
                .read_to_end(&mut self.seen)
                .await
                .unwrap();
            exit_of(self.handle.as_ref()).await
        };
        match tokio::time::timeout(LIMIT, wait).await {
            Ok(exit) => exit,
            Err(_) => panic!("the VM does not end:\n{}", self.text()),
        }
    }
}

async fn exit_of(handle: &dyn BackendVmHandle) -> VmExit {
    let mut status = handle.status();
    let status = status.wait_for(|status| status.exit().is_some()).await;
    status.unwrap().exit().cloned().unwrap()
}

fn is_process(id: u32) -> bool {
    Path::new(&format!("/proc/{id}")).exists()
}

#[tokio::test]
async fn input_written_before_the_guest_runs_reaches_its_shell_and_power_off_is_clean() {
    let mut vm = Vm::start(&VmSpec { cpus: 2, ..spec() }).await;

    vm.type_line("echo CPUs: $(nproc); poweroff -f").await;
    let exit = vm.exit().await;

    assert!(vm.text().contains("CPUs: 2"), "{}", vm.text());
    assert_eq!(exit, VmExit::PoweredOff, "{}", vm.text());
}

#[tokio::test]
async fn the_virtio_console_carries_input_and_output() {
    let mut spec = spec();
    boot_mut(&mut spec).command_line = "console=hvc0 quiet panic=-1".to_owned();
    spec.console.input = ConsoleInput::Virtio;
    let mut vm = Vm::start(&spec).await;

    vm.type_line("echo on $(tty); poweroff -f").await;
    let exit = vm.exit().await;

    assert!(vm.text().contains("on /dev/"), "{}", vm.text());
    assert_eq!(exit, VmExit::PoweredOff, "{}", vm.text());
}

#[tokio::test]
async fn a_reboot_is_a_reset() {
    let mut vm = Vm::start(&spec()).await;
    vm.type_line("reboot -f").await;
    assert_eq!(vm.exit().await, VmExit::Reset, "{}", vm.text());
}

#[tokio::test]
async fn a_reboot_by_triple_fault_is_told_apart() {
    let mut spec = spec();
    boot_mut(&mut spec).command_line.push_str(" reboot=t");
    let mut vm = Vm::start(&spec).await;
    vm.type_line("reboot -f").await;
    assert_eq!(vm.exit().await, VmExit::TripleFault, "{}", vm.text());
}

#[tokio::test]
async fn a_panic_is_reported_with_its_message() {
    let mut vm = Vm::start(&spec()).await;

    vm.type_line("echo c > /proc/sysrq-trigger").await;

    match vm.exit().await {
        VmExit::GuestPanic(panic) => {
            assert_eq!(panic.message.as_deref(), Some("sysrq triggered crash"));
        }
        other => panic!("{other:?}:\n{}", vm.text()),
    }
}

#[tokio::test]
async fn a_killed_vm_is_killed_and_frees_its_process() {
    let mut vm = Vm::start(&spec()).await;
    let id = vm.handle.process_id().unwrap();
    assert!(is_process(id));

    vm.handle.kill().await.unwrap();

    assert!(!is_process(id));
    assert_eq!(vm.exit().await, VmExit::Killed);
}

#[tokio::test]
async fn a_dropped_handle_ends_the_process_and_the_console() {
    let vm = Vm::start(&spec()).await;
    let id = vm.handle.process_id().unwrap();
    let Vm {
        handle,
        mut console,
        ..
    } = vm;

    drop(handle);
    let mut rest = Vec::new();
    console.output.read_to_end(&mut rest).await.unwrap();

    assert!(!is_process(id));
}

#[tokio::test]
async fn a_process_that_somebody_else_killed_is_a_monitor_failure() {
    let mut vm = Vm::start(&spec()).await;
    let id = vm.handle.process_id().unwrap();

    let pid = rustix::process::Pid::from_raw(id.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();

    match vm.exit().await {
        VmExit::MonitorFailure(failure) => {
            assert!(failure.reason.contains("SIGKILL"), "{failure}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_paused_guest_answers_only_after_it_was_resumed() {
    let mut vm = Vm::start(&spec()).await;
    vm.type_line("echo ready-$((1+1))").await;
    vm.wait_for("ready-2").await;

    vm.handle.pause().await.unwrap();
    assert_eq!(*vm.handle.status().borrow(), VmStatus::Paused);
    vm.type_line("echo answer-$((2+2)); poweroff -f").await;
    // What was on its way may still come; an answer would come within this time.
    let window = tokio::time::sleep(Duration::from_millis(500));
    tokio::pin!(window);
    loop {
        tokio::select! {
            read = vm.console.output.read_buf(&mut vm.seen) => assert!(read.unwrap() > 0),
            () = &mut window => break,
        }
    }
    assert!(!vm.text().contains("answer-4"), "a paused guest answered");
    vm.handle.resume().await.unwrap();

    assert_eq!(vm.exit().await, VmExit::PoweredOff);
    assert!(vm.text().contains("answer-4"), "{}", vm.text());
}

#[tokio::test]
async fn a_kernel_that_qemu_cannot_load_is_an_error_with_its_words() {
    // Arrange: valid headers, so that the check passes, behind which nothing is as it should be.
    let folder = tempfile::tempdir().unwrap();
    let path: PathBuf = folder.path().join("kernel");
    std::fs::copy(&boot_mut(&mut spec()).kernel, &path).unwrap();
    let mut spec = spec();
    boot_mut(&mut spec).kernel = path.clone();
    let backend = QemuBackend::new();
    backend.check(&spec).await.unwrap();
    std::fs::write(&path, "nothing").unwrap();

    // Act
    let error = backend.launch(&spec).await.err().unwrap();

    // Assert
    assert!(matches!(error, Error::File { .. }), "{error}");
}

/// Set in a copy of this test's process that is to be killed.
const VICTIM: &str = "CAPSA_QEMU_TEST_VICTIM";

/// The other half of [`a_caller_that_is_killed_takes_qemu_along`]: starts a VM, says which process
/// runs it, and waits to be killed.
#[tokio::test]
async fn victim_that_waits_to_be_killed() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let vm = Vm::start(&spec()).await;
    println!("QEMU={}", vm.handle.process_id().unwrap());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_caller_that_is_killed_takes_qemu_along() {
    // Arrange
    let mut victim = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim_that_waits_to_be_killed", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(victim.stdout.take().unwrap());
    let id: i32 = std::io::BufRead::lines(output)
        .find_map(|line| line.unwrap().split_once("QEMU=")?.1.parse().ok())
        .unwrap();
    let pid = rustix::process::Pid::from_raw(id).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    let qemu = rustix::process::pidfd_open(pid, flags).unwrap();

    // Act: no chance to clean up.
    victim.kill().unwrap();
    victim.wait().unwrap();

    // Assert: the process's descriptor becomes readable at its end.
    let mut poll = [rustix::event::PollFd::new(
        &qemu,
        rustix::event::PollFlags::IN,
    )];
    let limit = rustix::event::Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    assert_eq!(rustix::event::poll(&mut poll, Some(&limit)).unwrap(), 1);
}

#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
    children: usize,
}

impl Held {
    fn now() -> Self {
        let count = |path: &str| std::fs::read_dir(path).unwrap().count();
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        let children = tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok())
            .map(|children| children.split_whitespace().count())
            .sum();
        Self {
            descriptors: count("/proc/self/fd"),
            threads: count("/proc/self/task"),
            children,
        }
    }
}

/// Runs [`loop_that_leaves_nothing`] in a process of its own: other tests must not be counted.
#[test]
fn vms_that_come_and_go_leave_nothing_behind() {
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "loop_that_leaves_nothing", "--nocapture"])
        .env(VICTIM, "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn loop_that_leaves_nothing() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let spec = spec();
    let round = async |index: u32| {
        let mut vm = Vm::start(&spec).await;
        let mut status = vm.handle.status();
        if index.is_multiple_of(4) {
            // Half-way through its boot.
            vm.console.output.read_u8().await.ok();
        }
        if index % 4 == 1 {
            // Broken off while it starts.
            let backend = QemuBackend::new();
            tokio::select! {
                biased;
                _ = backend.launch(&spec) => {}
                () = tokio::task::yield_now() => {}
            }
        }
        drop(vm);
        let gone = status.wait_for(|status| status.exit().is_some()).await;
        assert_eq!(gone.unwrap().exit(), Some(&VmExit::Killed));
    };
    // What a first VM sets up once for the process stays.
    round(0).await;
    round(1).await;
    let before = settled(None).await;

    for index in 0..40 {
        round(index).await;
    }

    assert_eq!(settled(Some(&before)).await, before);
}

/// What this process holds, once it is `wanted`, or after a while: starts that were broken off and
/// idle threads of the runtime's pool take a moment to go.
async fn settled(wanted: Option<&Held>) -> Held {
    let mut held = Held::now();
    for _ in 0..150 {
        let done = match wanted {
            Some(wanted) => held == *wanted,
            None => held.children == 0 && held.threads <= 2,
        };
        if done {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        held = Held::now();
    }
    held
}
