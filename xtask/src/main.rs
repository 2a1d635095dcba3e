//! What people would otherwise have to remember: set-up, kernel, lab, tests.

#[cfg(target_os = "linux")]
mod bench;
mod cache;
mod command_line;
#[cfg(target_os = "linux")]
mod darwin;
#[cfg(not(target_os = "linux"))]
#[path = "darwin_on_mac.rs"]
mod darwin;
mod darwin_features;
mod fuzz;
mod kernel;
#[cfg(target_os = "linux")]
mod lab;
mod setup;
#[cfg(target_os = "linux")]
mod soak;
#[cfg(target_os = "linux")]
mod streams;
#[cfg(target_os = "linux")]
mod test;
mod workspace;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Capsa's development tasks",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Get everything that running and testing Capsa needs: packages and kernels
    Setup,
    /// Build the default guest kernel, unless it is there already
    Kernel(kernel::KernelArguments),
    /// Build the default initramfs: the agent, and BusyBox
    Initramfs,
    /// Make a data directory with the machines that the integration tests start
    TestVms(kernel::TestVmsArguments),
    /// Check, lint and link the macOS code on Linux
    Darwin(darwin::DarwinArguments),
    /// Run the command line `capsa` from this tree; without arguments, show a guest
    Run {
        /// Arguments for `capsa`
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "ARGUMENT"
        )]
        arguments: Vec<OsString>,
    },
    /// Run a command in an emulated machine that has a working /dev/kvm
    #[cfg(target_os = "linux")]
    Lab(lab::LabArguments),
    /// Build all tests and run each where it can run
    #[cfg(target_os = "linux")]
    Test(test::TestArguments),
    /// Measure Capsa beside its peers
    #[cfg(target_os = "linux")]
    Bench(bench::BenchArguments),
    /// Run the tests that take too long for each change
    #[cfg(target_os = "linux")]
    Soak(soak::SoakArguments),
    /// Feed the fuzz targets with what breaks them
    Fuzz(fuzz::FuzzArguments),
    /// A series of test programs inside the lab
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    TestSeries,
    /// First process of the emulated machine; started by its kernel
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    LabInit,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Task::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Task::Kernel(arguments) => kernel::run(arguments).map(|()| ExitCode::SUCCESS),
        Task::TestVms(arguments) => kernel::test_vms(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Initramfs => kernel::initramfs().map(|path| {
            eprintln!("initramfs: {}", path.display());
            ExitCode::SUCCESS
        }),
        Task::Run { arguments } => command_line::run(&arguments),
        Task::Darwin(arguments) => darwin::run(arguments),
        #[cfg(target_os = "linux")]
        Task::Lab(arguments) => lab::run(arguments),
        #[cfg(target_os = "linux")]
        Task::Test(arguments) => test::run(&arguments),
        #[cfg(target_os = "linux")]
        Task::Bench(arguments) => bench::run(&arguments),
        #[cfg(target_os = "linux")]
        Task::Soak(arguments) => soak::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        #[cfg(target_os = "linux")]
        Task::TestSeries => test::run_series_inside(),
        #[cfg(target_os = "linux")]
        Task::LabInit => lab::inside::run(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
