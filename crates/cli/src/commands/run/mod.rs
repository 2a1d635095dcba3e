//! `capsa run`: a command in a sandbox, or one virtual machine with its console on this terminal or
//! pipe.

pub(crate) mod devices;
mod keys;
pub(crate) mod network_flags;
mod ready;
mod session;
pub(crate) mod signals;
pub(crate) mod vsock_port;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use capsa::{
    BackendChoice, Capsa, ConsoleConfig, LinuxBootConfig, LinuxVmBuilder, MemorySize, VmHandle,
    VsockSpec,
};
use capsa_guest::discover::INITRD_VARIABLE;
use clap::Args;

use self::devices::{DiskArgument, ShareArgument};
use self::vsock_port::VsockPortArgument;
use crate::commands::sandbox;
use crate::commands::sandbox::run::SandboxArguments;
use crate::exit_status::{self, ExitStatus};
use crate::failure::Failure;
use crate::{output, terminal};

#[derive(Args)]
#[command(after_help = exit_status::HELP)]
pub(crate) struct RunArguments {
    /// The kernel: a file, or a name of `capsa kernel list` [default: the default kernel]
    #[arg(long, value_name = "FILE|NAME")]
    pub(crate) kernel: Option<PathBuf>,
    /// The initramfs; `default` for the default one, `none` for none [default: the default one
    /// with the default kernel, none with another]
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// How many virtual CPUs
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,
    /// How much memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) memory: MemorySize,
    /// A disk image, raw or qcow2, read-write unless said otherwise; `overlay` throws the guest's
    /// writes away (repeatable: /dev/vda, /dev/vdb, …)
    #[arg(long = "disk", value_name = "FILE[:ro|:overlay]")]
    pub(crate) disks: Vec<DiskArgument>,
    /// A directory for the guest, read-only unless said otherwise (repeatable)
    #[arg(long = "share", value_name = "HOST:GUEST[:ro|:rw]")]
    pub(crate) shares: Vec<ShareArgument>,
    /// Give the guest a socket device, for its programs among themselves and with the host
    #[arg(long)]
    pub(crate) vsock: bool,
    /// Hand what the guest's programs connect to this vsock port of the host to the program that listens
    /// on this Unix socket (repeatable)
    #[arg(long = "vsock-port", value_name = "PORT:PATH")]
    pub(crate) vsock_ports: Vec<VsockPortArgument>,
    /// Kernel parameters; they win over the defaults
    #[arg(long, value_name = "PARAMETERS", allow_hyphen_values = true)]
    pub(crate) cmdline: Option<String>,
    /// What runs it: auto, or a name of `capsa backends` [default: $CAPSA_BACKEND, or auto]
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: Option<BackendChoice>,
    /// A name for it: in logs and, for a sandbox, what `capsa exec` and the others find it by
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// End it after this time: seconds, or a number with s, m or h behind it
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) timeout: Option<Duration>,
    #[command(flatten)]
    pub(crate) network: network_flags::NetworkFlags,
    #[command(flatten)]
    pub(crate) sandbox: SandboxArguments,
}

pub(crate) fn parse_time(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, "s"),
    };
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(3600),
        _ => None,
    };
    number
        .parse::<u64>()
        .ok()
        .zip(seconds)
        .and_then(|(number, seconds)| number.checked_mul(seconds))
        .filter(|seconds| *seconds > 0)
        .map(Duration::from_secs)
        .ok_or_else(|| "write a number of seconds above 0, or such as 90s, 5m or 1h".to_owned())
}

impl RunArguments {
    async fn builder(&self, input: Input) -> Result<LinuxVmBuilder, Failure> {
        let mut config = LinuxBootConfig::new();
        if let Some(kernel) = &self.kernel {
            config = config.kernel(kernel);
        }
        config = match self.initrd.as_deref() {
            None => config,
            Some(name) if name == OsStr::new("default") => config.default_initramfs(),
            Some(name) if name == OsStr::new("none") => config.without_initramfs(),
            Some(file) => config.initramfs(file),
        };
        let mut console = ConsoleConfig::new();
        let mut vm = Capsa::vm(config).cpus(self.cpus).memory(self.memory);
        if self.boots_default_initramfs() {
            for parameter in init_parameters(input) {
                vm = vm.cmdline(parameter);
            }
        }
        if input == Input::Keys
            && let Some(size) = terminal::window_size()
        {
            console = console.window_size(size);
        }
        for DiskArgument(disk) in &self.disks {
            vm = vm.disk(disk.clone());
        }
        for ShareArgument(share) in &self.shares {
            vm = vm.share(share.clone());
        }
        if self.vsock || !self.vsock_ports.is_empty() {
            // A guest that is early waits.
            vm = vm.vsock(VsockSpec {
                listen_ports: self.vsock_ports.iter().map(|port| port.port).collect(),
                ..VsockSpec::default()
            });
        }
        if let Some(parameters) = &self.cmdline {
            vm = vm.cmdline(parameters);
        }
        if let Some(backend) = self.backend {
            vm = vm.backend(backend);
        }
        if let Some(name) = &self.name {
            vm = vm.name(name);
        }
        if let Some(interface) = self.network.interface(self.name.as_deref()).await? {
            vm = vm.network(interface);
        }
        Ok(vm.console(console))
    }

    fn input(&self) -> Input {
        // What the variable names may have another init.
        let init_is_known =
            self.boots_default_initramfs() && std::env::var_os(INITRD_VARIABLE).is_none();
        match (terminal::is_interactive(), init_is_known) {
            (true, _) => Input::Keys,
            (false, false) => Input::Pipe,
            (false, true) => Input::PipeWhenReady,
        }
    }

    fn boots_default_initramfs(&self) -> bool {
        match &self.initrd {
            Some(name) => name == OsStr::new("default"),
            None => self.kernel.is_none(),
        }
    }
}

/// What the default initramfs is told of the console behind which its shell is.
fn init_parameters(input: Input) -> Vec<String> {
    let mut parameters = Vec::new();
    if input == Input::Keys {
        let size = terminal::window_size()
            .map(|size| format!("capsa.winsize={}x{}", size.rows, size.columns));
        let kind = terminal::kind().map(|kind| format!("capsa.term={kind}"));
        parameters.extend(size.into_iter().chain(kind));
    } else {
        parameters.push("capsa.console=raw".to_owned());
    }
    if input == Input::PipeWhenReady {
        parameters.push(ready::parameter());
    }
    parameters
}

/// What is at the host's end of the console's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    /// A person's terminal.
    Keys,
    /// A pipe or a file, and a guest of which nothing is known.
    Pipe,
    /// A pipe or a file, and a guest that says when it is ready.
    PipeWhenReady,
}

pub(crate) async fn run(arguments: RunArguments) -> Result<ExitStatus, Failure> {
    vsock_port::check(&arguments.vsock_ports)?;
    if arguments.sandbox.is_wanted() {
        return sandbox::run::run(arguments).await;
    }
    arguments.sandbox.check_unused()?;
    let input = arguments.input();
    let vm = arguments.builder(input).await?.build().await?;
    let told = warn(&vm, 0);
    let ports = &arguments.vsock_ports;
    session::run(vm, input, arguments.timeout, ports, told).await
}

/// Prints the warnings from number `told` on; returns how many there are now.
fn warn(vm: &VmHandle, told: usize) -> usize {
    let warnings = vm.warnings();
    for warning in warnings.iter().skip(told) {
        output::to_stderr(&format!("warning: {warning}"));
    }
    warnings.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_parse_with_and_without_a_unit() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600)] {
            assert_eq!(parse_time(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "0",
            "s",
            "1d",
            "-1",
            "1.5",
            "99999999999999999999",
            "9999999999999999999h",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
