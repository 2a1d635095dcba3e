//! `capsa wait`: waits for the end of a sandbox, and exits as its command did.

use capsa::{CommandEnd, Sandbox};
use clap::Args;

use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Args)]
pub(crate) struct WaitArguments {
    /// The sandbox
    name: String,
}

pub(crate) async fn run(arguments: WaitArguments) -> Result<ExitStatus, Failure> {
    let (exit, command) = Sandbox::wait_for_command(&arguments.name).await?;
    Ok(match command {
        Some(CommandEnd::Exited(status)) => status.into(),
        Some(CommandEnd::TimedOut) => ExitStatus::TimedOut,
        Some(CommandEnd::Failed { code, reason }) => {
            output::to_stderr(&format!("error: {reason}"));
            ExitStatus::Command(u8::try_from(code).unwrap_or(125))
        }
        _ => (&exit).into(),
    })
}
