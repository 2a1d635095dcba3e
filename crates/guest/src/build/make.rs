//! Running the kernel's own build.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{BZIMAGE_FILE, BuildError, CONFIG_FILE, Progress, tools};
use crate::Arch;
use crate::store::KERNEL_FILE;

/// How many lines of a failed program's output an error shows.
const SHOWN_LINES: usize = 20;

/// A source tree and a build tree.
pub(super) struct Make<'a> {
    pub(super) arch: Arch,
    pub(super) sources: &'a Path,
    pub(super) out: &'a Path,
    pub(super) jobs: usize,
    /// What the kernel is to say of when it was built.
    pub(super) date: String,
}

/// What is built for `arch`.
pub(super) fn targets(arch: Arch) -> &'static [&'static str] {
    match arch {
        Arch::X86_64 => &["vmlinux", "bzImage"],
        Arch::Aarch64 => &["Image"],
    }
}

impl Make<'_> {
    /// `make` with `targets`.
    pub(super) fn run(
        &self,
        targets: &[&str],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        let mut command = self.command("make");
        command
            .current_dir(self.sources)
            .arg(format!("--jobs={}", self.jobs))
            .arg(format!("O={}", self.out.display()))
            .arg(format!("ARCH={}", name_in_linux(self.arch)))
            .arg(format!("CROSS_COMPILE={}", tools::prefix(self.arch)))
            .args(targets);
        self.watch(command, progress)
    }

    /// Lays the fragments over the configuration.
    pub(super) fn merge_fragments(
        &self,
        fragments: &[PathBuf],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        let mut command = self.command("sh");
        command
            .current_dir(self.out)
            .arg(self.sources.join("scripts/kconfig/merge_config.sh"))
            .args(["-m", ".config"])
            .args(fragments);
        self.watch(command, progress)
    }

    /// Copies what was built to `result`.
    pub(super) fn collect(&self, result: &Path) -> Result<(), BuildError> {
        let kernel = result.join(KERNEL_FILE);
        let copy = |from: &str, to: &Path| {
            fs::copy(self.out.join(from), to)
                .map(drop)
                .map_err(BuildError::io("copying", &self.out.join(from)))
        };
        match self.arch {
            Arch::X86_64 => {
                let mut strip = self.command(&format!("{}strip", tools::prefix(self.arch)));
                strip
                    .arg("--strip-all")
                    .arg("-o")
                    .arg(&kernel)
                    .arg(self.out.join("vmlinux"));
                self.watch(strip, &mut |_| {})?;
                copy("arch/x86/boot/bzImage", &result.join(BZIMAGE_FILE))?;
            }
            Arch::Aarch64 => copy("arch/arm64/boot/Image", &kernel)?,
        }
        copy(".config", &result.join(CONFIG_FILE))
    }

    /// A command with nothing in its environment that changes a build.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(
                ["PATH", "HOME", "TMPDIR"]
                    .into_iter()
                    .filter_map(|name| std::env::var_os(name).map(|value| (name, value))),
            )
            .env("LC_ALL", "C")
            .env("KBUILD_BUILD_USER", "capsa")
            .env("KBUILD_BUILD_HOST", "capsa")
            .env("KBUILD_BUILD_VERSION", "1")
            .env("KBUILD_BUILD_TIMESTAMP", &self.date);
        command
    }

    /// Runs `command`, and tells of each line that it says.
    fn watch(
        &self,
        mut command: Command,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), BuildError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = |reason: String, output: String| BuildError::Program {
            program: program.clone(),
            reason,
            output,
            tree: self.out.to_owned(),
        };
        let not_run = |error: io::Error| failed(error.to_string(), String::new());
        let (reader, writer) = io::pipe().map_err(not_run)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(not_run)?)
            .stderr(writer)
            .spawn()
            .map_err(not_run)?;
        // It holds the ends to write to; with them open the output would never end.
        drop(command);
        let mut end = VecDeque::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.map_err(not_run)?;
            let line = String::from_utf8_lossy(&line).into_owned();
            progress(Progress::Line(&line));
            if end.len() == SHOWN_LINES {
                end.pop_front();
            }
            end.push_back(line);
        }
        let status = child.wait().map_err(not_run)?;
        if status.success() {
            return Ok(());
        }
        let output: Vec<String> = end.into();
        Err(failed(status.to_string(), output.join("\n")))
    }
}

fn name_in_linux(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "x86_64",
        Arch::Aarch64 => "arm64",
    }
}
