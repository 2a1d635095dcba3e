//! The guest's pieces: `cargo xtask kernel` and `cargo xtask initramfs`, which set-up calls, too.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use capsa_guest::build::{KernelBuild, Progress, SourceChoice};
use capsa_guest::store::{DEFAULT_KERNEL, KernelStore, StoreError, StoredKernel};
use capsa_guest::{Arch, agent, initramfs};
use clap::Args;

use crate::{cache, workspace};

#[derive(Args, Default)]
pub(crate) struct KernelArguments {
    /// Build from this Linux source tree, which is not written to, instead of Debian's sources
    #[arg(long, value_name = "DIR")]
    source: Option<PathBuf>,
    /// What the kernel is for: x86_64 or aarch64 [default: this machine's architecture]
    #[arg(long)]
    arch: Option<Arch>,
    /// How many compilers run at once [default: the number of processors]
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
}

#[derive(Args)]
pub(crate) struct TestVmsArguments {
    /// What the machines are for: x86_64 or aarch64 [default: this machine's architecture]
    #[arg(long)]
    arch: Option<Arch>,
    /// The data directory to make
    #[arg(long, short, value_name = "DIR", default_value = "result-vms")]
    output: PathBuf,
}

/// Makes a data directory with the default kernel and initramfs: what `nix-build nix/test-vms` makes.
pub(crate) fn test_vms(arguments: &TestVmsArguments) -> Result<()> {
    let store = KernelStore::at(&arguments.output);
    let host = Arch::host();
    let arch = arguments
        .arch
        .or(host)
        .context("give --arch: this machine's is none that guests have")?;
    let mut build = KernelBuild::for_arch(arch)?;
    build.name = DEFAULT_KERNEL.to_owned();
    let mut shown = Shown::new();
    let kernel = build.run(&store, &mut |progress| shown.show(progress));
    shown.end();
    let kernel = kernel.context("no guest kernel was built")?;
    println!("{}", kernel.path.display());
    if Some(arch) != host {
        bail!(
            "there is no initramfs for {arch} in {}: the agent is built for this machine's architecture only; build there, or with Nix",
            store.directory().display()
        );
    }
    let agent = agent::build(&workspace::root()?, &cache::directory()?)?;
    let initramfs = initramfs::build(&store, &agent, initramfs::BUSYBOX.as_ref())
        .context("no initramfs was made")?;
    println!("{}", initramfs.display());
    Ok(())
}

/// Builds the kernel, unless it is there, and puts it into the user's data directory.
pub(crate) fn run(arguments: KernelArguments) -> Result<()> {
    let kernel = ensure(arguments)?;
    eprintln!("kernel: {}", described(&kernel));
    Ok(())
}

/// The same, quiet where there is nothing to do.
pub(crate) fn ensure(arguments: KernelArguments) -> Result<StoredKernel> {
    let mut build = match arguments.arch {
        Some(arch) => KernelBuild::for_arch(arch)?,
        None => KernelBuild::for_host()?,
    };
    if let Some(directory) = arguments.source {
        build.source = SourceChoice::Directory(directory);
    }
    if let Some(jobs) = arguments.jobs {
        build.jobs = jobs;
    }
    let mut shown = Shown::new();
    let kernel = build.run(&KernelStore::user()?, &mut |progress| shown.show(progress));
    shown.end();
    kernel.context("no guest kernel was built")
}

/// Builds the default kernel where there is none, and again where what it is made of has changed. One that somebody
/// imported is left alone, and so is one that cannot be built again for want of packages.
pub(crate) fn ensure_default() -> Result<()> {
    if let Some(kernel) = default_kernel()? {
        let built_here = kernel.record.is_some_and(|record| record.recipe.is_some());
        if !built_here || !KernelBuild::for_host()?.missing_packages().is_empty() {
            return Ok(());
        }
    }
    ensure(KernelArguments::default()).map(drop)
}

/// The packages to install before [`ensure_default`].
pub(crate) fn missing_packages() -> Vec<String> {
    match (default_kernel(), KernelBuild::for_host()) {
        (Ok(None), Ok(build)) => build.missing_packages(),
        // There is nothing to build, or what keeps us from it will be said then.
        _ => Vec::new(),
    }
}

fn default_kernel() -> Result<Option<StoredKernel>> {
    match KernelStore::user()?.get(DEFAULT_KERNEL) {
        Ok(kernel) => Ok(Some(kernel)),
        Err(StoreError::Unknown { .. }) => Ok(None),
        Err(error) => Err(error).context("cannot look for the default kernel"),
    }
}

/// Builds the agent and the default initramfs, and puts that into the user's data directory.
pub(crate) fn initramfs() -> Result<PathBuf> {
    let agent = agent::build(&workspace::root()?, &cache::directory()?)?;
    let busybox = initramfs::BUSYBOX.as_ref();
    initramfs::build(&KernelStore::user()?, &agent, busybox).context("no initramfs was made")
}

fn described(kernel: &StoredKernel) -> String {
    let version = kernel
        .record
        .as_ref()
        .and_then(|record| record.version.as_deref())
        .unwrap_or("of unknown version");
    format!("Linux {version}, {}", kernel.path.display())
}

/// Progress on standard error: one line for each step, and on a terminal the file being compiled.
struct Shown {
    began: Instant,
    terminal: bool,
    line_open: bool,
    compiled: usize,
}

impl Shown {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            terminal: io::stderr().is_terminal(),
            line_open: false,
            compiled: 0,
        }
    }

    fn show(&mut self, progress: Progress<'_>) {
        match progress {
            Progress::Step(step) => {
                self.end();
                let seconds = self.began.elapsed().as_secs();
                say(format_args!("kernel: {step} … (after {seconds} s)\n"));
            }
            Progress::Line(line) => self.line(line),
            _ => {}
        }
    }

    fn line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        if words.next() == Some("CC") {
            self.compiled += 1;
        }
        if self.terminal
            && let Some(file) = words.next()
        {
            // Back to the line's start, and clear it.
            say(format_args!(
                "\r\x1b[Kkernel: {} files, {file}",
                self.compiled
            ));
            self.line_open = true;
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.line_open) {
            say(format_args!("\r\x1b[K"));
        }
    }
}

fn say(text: std::fmt::Arguments<'_>) {
    // Where nobody listens there is nobody to tell.
    let _ = io::stderr().write_fmt(text);
}
