use clap::{Args, Parser, Subcommand};

use crate::commands::{completions, kernel, run};
#[cfg(target_os = "linux")]
use crate::commands::{network, sandbox};

/// Run virtual machines.
#[derive(Parser)]
#[command(
    name = "capsa",
    version,
    disable_help_subcommand = true,
    propagate_version = false
)]
pub(crate) struct Arguments {
    /// Log what happens to standard error; -vv and -vvv say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a command in a virtual machine; without one, show the machine's console
    ///
    /// With a root file system, a command or --detach it is a sandbox: `capsa run ./rootfs -- ls /`.
    ///
    /// Without any of them it is a virtual machine with its console on this terminal or pipe. On a
    /// terminal every key goes to the guest; Ctrl-] leaves and ends the virtual machine. On a pipe
    /// standard input is fed to the guest's console, its end does not end the virtual machine, and
    /// standard output has the guest's bytes and nothing else.
    Run(Box<run::RunArguments>),
    /// Run a command in a running sandbox
    #[cfg(target_os = "linux")]
    Exec(sandbox::exec::ExecArguments),
    /// List the sandboxes that have a name
    #[cfg(target_os = "linux")]
    Ps(JsonArguments),
    /// Show what a detached sandbox's command has written
    #[cfg(target_os = "linux")]
    Logs(sandbox::logs::LogsArguments),
    /// Copy files and trees into a sandbox, and out of it
    #[cfg(target_os = "linux")]
    Cp(sandbox::copy::CopyArguments),
    /// Ask sandboxes to shut down, and end those that do not
    #[cfg(target_os = "linux")]
    Stop(sandbox::stop::StopArguments),
    /// End sandboxes at once
    #[cfg(target_os = "linux")]
    Kill(sandbox::stop::KillArguments),
    /// Remove what is kept of sandboxes that have ended or crashed
    #[cfg(target_os = "linux")]
    Rm(sandbox::remove::RemoveArguments),
    /// Show all that is known of a sandbox, as JSON
    #[cfg(target_os = "linux")]
    Inspect(sandbox::inspect::InspectArguments),
    /// Wait for the end of a sandbox, and exit as its command did
    #[cfg(target_os = "linux")]
    Wait(sandbox::wait::WaitArguments),
    /// Show the ports that lead to a running sandbox, or change them
    #[cfg(target_os = "linux")]
    Port(sandbox::port::PortArguments),
    /// Networks that sandboxes and machines of several commands share
    #[cfg(target_os = "linux")]
    Network(network::NetworkArguments),
    /// Show what can be used on this machine, what not, and how to fix it
    Doctor(JsonArguments),
    /// Show what each backend can do
    Backends(JsonArguments),
    /// Guest kernels: list, build, import, remove
    Kernel(kernel::KernelArguments),
    /// Show the version
    Version(JsonArguments),
    /// Print a completion script for a shell
    Completions(completions::CompletionArguments),
}

#[derive(Args)]
pub(crate) struct JsonArguments {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
