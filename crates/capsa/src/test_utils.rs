//! Helpers for integration tests with real guests.
//!
//! They panic where something is missing: a test that cannot run must not pass. The variable
//! `CAPSA_TEST_BACKEND` (`kvm`, `qemu`, …) names the backend; without it the first usable is taken.
//! With `CAPSA_TEST_ISOLATION=required` a machine that would not be wholly confined does not start.
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use crate::{
    BackendChoice, BackendReport, Capsa, Isolation, LinuxBootConfig, LinuxVmBuilder, Pattern,
    VmConsole, VmHandle,
};

/// How long anything in a guest may take before a test fails: guests may run in an emulated
/// machine within an emulated machine.
pub const LIMIT: Duration = Duration::from_secs(240);
/// The variable that names the backend under test.
pub const BACKEND_VARIABLE: &str = "CAPSA_TEST_BACKEND";
/// The variable that says whether all of a machine's confinement is asked for.
pub const ISOLATION_VARIABLE: &str = "CAPSA_TEST_ISOLATION";

/// What the guest's init writes when its shell is there.
const READY: &str = "ready-for-tests";
/// Has the default initramfs run a [`Shell`]'s end in the guest.
pub const SHELL_PARAMETERS: &str = "capsa.console=raw capsa.ready=ready-for-tests";

/// The backend under test, which can be used here.
///
/// # Panics
/// Where it cannot, with the reason and the fix.
pub async fn backend() -> BackendReport {
    let choice: BackendChoice = match std::env::var(BACKEND_VARIABLE) {
        Ok(name) => name
            .parse()
            .unwrap_or_else(|error| panic!("{BACKEND_VARIABLE}: {error}")),
        Err(_) => BackendChoice::Auto,
    };
    let reports = Capsa::backends().await;
    let found = reports.iter().find(|report| match choice {
        BackendChoice::Auto => report.availability.usable,
        BackendChoice::Named(kind) => report.backend == kind,
    });
    match found {
        Some(report) if report.availability.usable => report.clone(),
        Some(report) => panic!(
            "the {} backend, which {BACKEND_VARIABLE} names, cannot be used here: {:?}",
            report.backend, report.availability
        ),
        None => panic!("no backend for {choice:?} can be used here: {reports:#?}"),
    }
}

/// How far the machines under test are to be confined.
///
/// # Panics
/// Where [`ISOLATION_VARIABLE`] says what it cannot.
pub fn isolation() -> Isolation {
    match std::env::var(ISOLATION_VARIABLE).as_deref() {
        Err(_) => Isolation::BestEffort,
        Ok("required") => Isolation::Required,
        Ok(other) => panic!("{ISOLATION_VARIABLE} is {other:?}, not \"required\""),
    }
}

/// A VM of the default kernel and initramfs on the backend under test, whose console is a shell
/// without echo or prompt.
///
/// # Panics
/// As [`backend`].
pub async fn vm() -> LinuxVmBuilder {
    Capsa::vm(LinuxBootConfig::new())
        .backend(backend().await.backend)
        .isolation(isolation())
        .memory_mib(256)
        .cmdline(SHELL_PARAMETERS)
}

/// A running guest and the shell on its console.
pub struct Shell {
    /// The VM.
    pub vm: VmHandle,
    /// Its console, read up to the answer of the last command.
    pub console: VmConsole,
}

impl Shell {
    /// Starts the VM and waits until its shell answers.
    ///
    /// # Panics
    /// Where it does not.
    pub async fn start(builder: LinuxVmBuilder) -> Self {
        let vm = builder
            .start()
            .await
            .unwrap_or_else(|error| panic!("{error}"));
        let mut console = vm.console().unwrap();
        // Not where the kernel shows its command line.
        let ready = Pattern::regex(&format!(r"(\A|[\r\n]){READY}\r?\n")).unwrap();
        console
            .wait_for(ready, LIMIT)
            .await
            .unwrap_or_else(|error| {
                let told = vm.console().map(|console| console.tail(4096));
                let told = told.unwrap_or_default();
                panic!(
                    "the guest's shell: {error}; its console:\n{}",
                    String::from_utf8_lossy(&told)
                )
            });
        Self { vm, console }
    }

    /// Runs a command; what it wrote (to both outputs), without the last newline.
    ///
    /// # Panics
    /// Where it fails or the guest does not answer.
    pub async fn run(&mut self, command: &str) -> String {
        self.run_within(LIMIT, command).await
    }

    /// The same, for what takes longer than most.
    ///
    /// # Panics
    /// As [`run`](Self::run).
    pub async fn run_within(&mut self, limit: Duration, command: &str) -> String {
        // Not the text that is waited for, should the terminal echo it.
        self.send(&format!("{{ {command}; }} 2>&1; echo \"<<capsa $?>>\""))
            .await;
        let end = Pattern::regex(r"<<capsa \d+>>\r?\n").unwrap();
        let output = self
            .console
            .wait_for(end, limit)
            .await
            .unwrap_or_else(|error| panic!("{command}: {error}"));
        let output = String::from_utf8_lossy(&output).replace('\r', "");
        match output.trim_end().rsplit_once("<<capsa ") {
            Some((text, "0>>")) => text.trim_end().to_owned(),
            _ => panic!("{command}: {output}"),
        }
    }

    /// Types a line and does not wait for anything.
    ///
    /// # Panics
    /// Where the console does not take it.
    pub async fn send(&mut self, line: &str) {
        self.console
            .write_line(line)
            .await
            .unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}
