//! `capsa exec`: a command in a running sandbox.

use std::ffi::OsString;

use capsa::Sandbox;
use clap::Args;

use super::CommandArguments;
use super::stdio::{Carried, carry};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;

#[derive(Args)]
pub(crate) struct ExecArguments {
    #[command(flatten)]
    how: CommandArguments,
    /// The sandbox
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

pub(crate) async fn run(arguments: ExecArguments) -> Result<ExitStatus, Failure> {
    let sandbox = Sandbox::attach(&arguments.name).await?;
    let command = arguments.how.command(&arguments.command);
    let child = sandbox.spawn(command).await?;
    Ok(match carry(child, arguments.how.streams()).await? {
        Carried::Ended(status) => status.into(),
        Carried::Broken(status) => status,
    })
}
