//! The monitors that are measured, each as the command that its users would type.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use capsa_bench::folder::Folder;
use capsa_bench::monitors::{self, Guest, PARAMETERS};

use crate::guest::MARK;
use crate::memory::{self, Memory};

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
    pub(crate) fn capsa(capsa: &Path, guest: &Guest<'_>) -> Self {
        Self::new("capsa", monitors::capsa(capsa, guest), guest)
    }

    pub(crate) fn qemu_microvm(qemu: &Path, guest: &Guest<'_>) -> Self {
        Self::new("qemu microvm", monitors::qemu_microvm(qemu, guest), guest)
    }

    pub(crate) fn firecracker(
        firecracker: &Path,
        guest: &Guest<'_>,
        folder: &Folder,
    ) -> Result<Self> {
        let config = folder.path("firecracker.json");
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": {:?}, "initrd_path": {:?}, "boot_args": {:?}}},
"drives": [], "machine-config": {{"vcpu_count": 1, "mem_size_mib": {}}}}}"#,
            guest.kernel.display().to_string(),
            guest.initramfs.display().to_string(),
            format!("{PARAMETERS} reboot=k pci=off"),
            guest.memory
        );
        fs::write(&config, text).context("cannot write Firecracker's configuration")?;
        let command = vec![
            firecracker.into(),
            "--no-api".into(),
            "--config-file".into(),
            config.into_os_string(),
        ];
        Ok(Self::new("firecracker", command, guest))
    }

    fn new(name: &'static str, command: Vec<OsString>, guest: &Guest<'_>) -> Self {
        Self {
            name,
            command,
            guest_kib: u64::from(guest.memory) * 1024,
        }
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
