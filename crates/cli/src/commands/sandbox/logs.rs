//! `capsa logs`: what a detached sandbox's command has written.

use capsa::Sandbox;
use clap::Args;
use tokio::io::{AsyncWriteExt, copy};

use crate::exit_status::ExitStatus;
use crate::failure::Failure;

#[derive(Args)]
pub(crate) struct LogsArguments {
    /// Go on with what comes, until it ends
    #[arg(short, long)]
    follow: bool,
    /// Show the console instead of the command's output
    #[arg(long)]
    console: bool,
    /// The sandbox
    name: String,
}

pub(crate) async fn run(arguments: LogsArguments) -> Result<ExitStatus, Failure> {
    let LogsArguments {
        follow,
        console,
        name,
    } = arguments;
    let mut log = if console {
        Sandbox::console_output(&name, follow).await?
    } else {
        Sandbox::output(&name, follow).await?
    };
    let mut stdout = tokio::io::stdout();
    let written = async {
        copy(&mut log, &mut stdout).await?;
        stdout.flush().await
    };
    written
        .await
        .map_err(|error| Failure::io("writing to standard output", error))?;
    Ok(ExitStatus::Success)
}
