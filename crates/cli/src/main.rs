//! The `capsa` command: virtual machines from a terminal or a script.

mod arguments;
mod commands;
mod exit_status;
mod failure;
mod output;
#[cfg(target_os = "linux")]
mod table;
mod terminal;

use clap::Parser;

use arguments::{Arguments, Command};
use exit_status::ExitStatus;
use failure::Failure;

fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    start_log(arguments.verbose);
    terminal::restore_on_panic();
    let ended = run(arguments.command).unwrap_or_else(|failure| {
        output::to_stderr(&format!("error: {failure}"));
        failure.status()
    });
    ended.into()
}

fn run(command: Command) -> Result<ExitStatus, Failure> {
    match command {
        Command::Run(arguments) => in_runtime(commands::run::run(*arguments)),
        #[cfg(target_os = "linux")]
        Command::Exec(arguments) => in_runtime(commands::sandbox::exec::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Ps(arguments) => in_runtime(commands::sandbox::list::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Logs(arguments) => in_runtime(commands::sandbox::logs::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Cp(arguments) => in_runtime(commands::sandbox::copy::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Stop(arguments) => in_runtime(commands::sandbox::stop::stop(arguments)),
        #[cfg(target_os = "linux")]
        Command::Kill(arguments) => in_runtime(commands::sandbox::stop::kill(arguments)),
        #[cfg(target_os = "linux")]
        Command::Rm(arguments) => in_runtime(commands::sandbox::remove::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Inspect(arguments) => in_runtime(commands::sandbox::inspect::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Wait(arguments) => in_runtime(commands::sandbox::wait::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Port(arguments) => in_runtime(commands::sandbox::port::run(arguments)),
        #[cfg(target_os = "linux")]
        Command::Network(arguments) => in_runtime(commands::network::run(arguments)),
        Command::Doctor(arguments) => in_runtime(commands::doctor::run(arguments)),
        Command::Backends(arguments) => in_runtime(commands::backends::run(arguments)),
        Command::Kernel(arguments) => commands::kernel::run(arguments),
        Command::Version(arguments) => commands::version::run(&arguments),
        Command::Completions(arguments) => commands::completions::run(&arguments),
    }
}

/// One thread is enough for one VM, and is there sooner than a pool.
fn in_runtime(
    work: impl Future<Output = Result<ExitStatus, Failure>>,
) -> Result<ExitStatus, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("starting the async runtime", error))?;
    let ended = runtime.block_on(work);
    // A read from standard input may still block a thread; it must not keep the process.
    runtime.shutdown_background();
    ended
}

fn start_log(verbosity: u8) {
    use tracing_subscriber::filter::LevelFilter;
    let level = match verbosity {
        0 => return,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .init();
}
