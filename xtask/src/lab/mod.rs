//! `cargo xtask lab -- COMMAND…`: runs a command in an emulated machine that has a working `/dev/kvm`.
//! `docs/lab.md` says what the command meets there.

mod cpio;
mod frames;
mod initramfs;
pub(crate) mod inside;
mod machine;
mod modules;
mod session;
mod terminal;

use std::ffi::OsString;
use std::fs;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;

use crate::setup;
pub(crate) use cpio::Archive;
use machine::MachineOptions;
pub(crate) use modules::ModuleTree;

/// Exit statuses of the lab's own, the same as `timeout` and `env` have.
const STATUS_TIMED_OUT: u8 = 124;
const STATUS_LAB_FAILED: u8 = 125;
const STATUS_CANNOT_RUN: u8 = 126;
const STATUS_NOT_FOUND: u8 = 127;

const DEFAULT_MEMORY_MIB: u64 = 9216;

#[derive(Args)]
#[command(after_help = "\
The exit status is the command's, or 128 + n where signal n ended it; 124 after --timeout; 125 where the \
lab itself failed; 126 and 127 where the command could not be run or was not found.")]
pub(crate) struct LabArguments {
    /// Memory of the machine in MiB; only what gets used is taken from the host [default: 9216, or
    /// three quarters of the host's where that is less]
    #[arg(long, value_name = "MIB")]
    memory: Option<u64>,
    /// Number of CPUs
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// End the machine after this many seconds, with exit status 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Give the command a terminal: for a shell, or an editor
    #[arg(short, long)]
    tty: bool,
    /// Load this kernel module too (repeatable): overlay, loop, vhost_vsock, …
    #[arg(long = "module", value_name = "NAME")]
    modules: Vec<String>,
    /// Show the machine's kernel messages on standard error
    #[arg(long)]
    console: bool,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

pub(crate) fn run(arguments: LabArguments) -> Result<ExitCode> {
    let status = in_lab(&arguments).unwrap_or_else(|error| {
        eprintln!("lab: {error:#}");
        STATUS_LAB_FAILED
    });
    Ok(ExitCode::from(status))
}

fn in_lab(arguments: &LabArguments) -> Result<u8> {
    let memory_mib = match arguments.memory {
        Some(memory) => memory,
        None => DEFAULT_MEMORY_MIB.min(host_memory_mib()? / 4 * 3),
    };
    machine::check_size(memory_mib, arguments.cpus)?;
    let job = session::job(&arguments.command, arguments.tty)?;
    let kernel = setup::lab()?;
    let options = MachineOptions {
        kernel: &kernel,
        memory_mib,
        cpus: arguments.cpus,
        modules: &arguments.modules,
        show_console: arguments.console,
    };
    session::run(&options, job, arguments.timeout.map(Duration::from_secs))
}

fn host_memory_mib() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    text.lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_ascii_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib / 1024)
        .context("/proc/meminfo does not tell the size of the memory: give --memory")
}
