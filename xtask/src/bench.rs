//! `cargo xtask bench NAME`: measures Capsa beside its peers, where KVM works: here, or in the lab.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use capsa_guest::agent;
use capsa_guest::store::{DEFAULT_KERNEL, KernelStore};
use clap::Args;

use crate::{cache, command_line, setup, test, workspace};

/// The lab's kernel needs it for the peer's vsock device.
const VSOCK_MODULE: &str = "vhost_vsock";

/// How much `devices` does in the lab, where what takes microseconds elsewhere takes milliseconds.
const DEVICES_IN_LAB: &[&str] = &[
    "--sequential=128",
    "--random=16",
    "--files=300",
    "--share=64",
    "--stream=32",
    "--pings=300",
];

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Which one: `boot`, `devices`, and the other programs `bench-NAME` of the folder `bench`
    name: String,
    /// Arguments for it
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENT"
    )]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &BenchArguments) -> Result<ExitCode> {
    let root = workspace::root()?;
    setup::for_tests()?;
    let build =
        |package, program: &str| command_line::build(&root, package, program, &["--release"]);
    let capsa = build("capsa-cli", "capsa")?;
    let bench = build("capsa-bench", &format!("bench-{}", arguments.name))?;
    let place = Place::find(&capsa)?;
    let mut command = place.command(&arguments.name)?;
    command.arg(bench).arg("--capsa").arg(capsa);
    match arguments.name.as_str() {
        "boot" => {
            command.arg("--kernel").arg(default_kernel()?);
        }
        "devices" => {
            command.arg("--kernel").arg(default_kernel()?);
            let guest = agent::build_program(&root, &cache::directory()?, "capsa-bench-guest")?;
            command.arg("--guest").arg(guest);
            let virtiofsd = setup::tools::virtiofsd().context("virtiofsd is not installed")?;
            command.arg("--virtiofsd").arg(virtiofsd.path);
            if place == Place::Lab {
                command.args(DEVICES_IN_LAB);
            }
        }
        _ => {}
    }
    let status = command
        .args(&arguments.arguments)
        .status()
        .context("cannot run the benchmark")?;
    Ok(command_line::exit_code(status))
}

/// Where KVM is of use.
#[derive(PartialEq, Eq)]
enum Place {
    Here,
    Lab,
}

impl Place {
    fn find(capsa: &Path) -> Result<Self> {
        Ok(match test::kvm_is_usable(capsa)? {
            Ok(()) => Self::Here,
            Err(reason) => {
                eprintln!("bench: in the lab, because of this machine's KVM: {reason}");
                Self::Lab
            }
        })
    }

    /// A command that runs another one, which is the benchmark `name`, there.
    fn command(&self, name: &str) -> Result<Command> {
        if *self == Self::Here {
            return Ok(Command::new("env"));
        }
        let xtask = std::env::current_exe().context("cannot tell this program's own path")?;
        let mut command = Command::new(xtask);
        command.arg("lab");
        if name == "devices" {
            command.args(["--module", VSOCK_MODULE]);
        }
        command.arg("--");
        Ok(command)
    }
}

fn default_kernel() -> Result<PathBuf> {
    let kernel = KernelStore::user()?.kernel_path(DEFAULT_KERNEL)?;
    if !kernel.is_file() {
        bail!("{} is not there: cargo xtask kernel", kernel.display());
    }
    Ok(kernel)
}
