//! The monitors that are measured, each as the command that its users would type.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::guest::{Folder, MARK};
use crate::memory::{self, Memory};

/// Kernel parameters that every monitor is given.
const COMMON: &str = "console=ttyS0 quiet panic=-1";

pub(crate) struct Monitor {
    name: &'static str,
    command: Vec<OsString>,
    guest_kib: u64,
}

/// What one run showed.
pub(crate) struct Run {
    pub(crate) seconds: f64,
    /// The process that runs the guest: resident KiB besides guest memory.
    pub(crate) monitor_kib: u64,
}

impl Monitor {
    pub(crate) fn capsa(capsa: &Path, kernel: &Path, initramfs: &Path, memory: u32) -> Self {
        let command = vec![
            capsa.into(),
            "run".into(),
            "--backend".into(),
            "kvm".into(),
            "--cpus".into(),
            "1".into(),
            "--memory".into(),
            format!("{memory}M").into(),
            "--kernel".into(),
            kernel.into(),
            "--initrd".into(),
            initramfs.into(),
            "--cmdline".into(),
            COMMON.into(),
        ];
        Self {
            name: "capsa",
            command,
            guest_kib: u64::from(memory) * 1024,
        }
    }

    pub(crate) fn qemu_microvm(qemu: &Path, kernel: &Path, initramfs: &Path, memory: u32) -> Self {
        let mut command: Vec<OsString> = vec![qemu.into()];
        command.extend(
            [
                "-M",
                "microvm",
                "-accel",
                "kvm",
                "-cpu",
                "host",
                "-smp",
                "1",
                "-nodefaults",
                "-no-user-config",
                "-nographic",
                "-no-reboot",
                "-serial",
                "stdio",
                "-append",
            ]
            .map(OsString::from),
        );
        command.push(format!("{COMMON} reboot=t").into());
        command.extend([OsString::from("-m"), format!("{memory}M").into()]);
        command.extend([OsString::from("-kernel"), kernel.into()]);
        command.extend([OsString::from("-initrd"), initramfs.into()]);
        Self {
            name: "qemu microvm",
            command,
            guest_kib: u64::from(memory) * 1024,
        }
    }

    pub(crate) fn firecracker(
        firecracker: &Path,
        kernel: &Path,
        initramfs: &Path,
        memory: u32,
        folder: &Folder,
    ) -> Result<Self> {
        let config = folder.path("firecracker.json");
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": {:?}, "initrd_path": {:?}, "boot_args": {:?}}},
"drives": [], "machine-config": {{"vcpu_count": 1, "mem_size_mib": {memory}}}}}"#,
            kernel.display().to_string(),
            initramfs.display().to_string(),
            format!("{COMMON} reboot=k pci=off")
        );
        fs::write(&config, text).context("cannot write Firecracker's configuration")?;
        let command = vec![
            firecracker.into(),
            "--no-api".into(),
            "--config-file".into(),
            config.into_os_string(),
        ];
        Ok(Self {
            name: "firecracker",
            command,
            guest_kib: u64::from(memory) * 1024,
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Starts it, waits for the guest's line, looks at the memory, and ends it.
    pub(crate) fn run(&self) -> Result<Run> {
        let (program, arguments) = self.command.split_first().context("an empty command")?;
        let start = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            // Cargo's, which has the dynamic linker look through folders that users have not.
            .env_remove("LD_LIBRARY_PATH")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let output = child.stdout.take().context("no output")?;
        let mut lines = BufReader::new(output);
        let mut line = Vec::new();
        let seconds = loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                bail!(
                    "it ended before the guest's /init printed its line: {}",
                    child.wait()?
                );
            }
            if String::from_utf8_lossy(&line).contains(MARK) {
                break start.elapsed().as_secs_f64();
            }
        };
        let monitor_kib = self.monitor_memory(child.id());
        // Ending one's own child cannot fail while it was not waited for.
        child.kill().context("cannot end the monitor")?;
        child.wait()?;
        Ok(Run {
            seconds,
            monitor_kib: monitor_kib?,
        })
    }

    /// The member of the family that maps the guest's memory is the monitor.
    fn monitor_memory(&self, pid: u32) -> Result<u64> {
        for pid in memory::family(pid) {
            let memory = Memory::of(pid, self.guest_kib)?;
            if memory.has_guest() {
                return Ok(memory.other_kib);
            }
        }
        bail!("no process of {} maps the guest's memory", self.name)
    }
}
