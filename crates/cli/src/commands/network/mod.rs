//! `capsa network`: networks that several commands share.

mod create;
mod inspect;
mod list;
mod remove;

use clap::{Args, Subcommand};

use crate::arguments::JsonArguments;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;

#[derive(Args)]
pub(crate) struct NetworkArguments {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Subcommand)]
enum NetworkCommand {
    /// Make a network, which is there until it is removed
    Create(create::CreateArguments),
    /// List the networks
    Ls(JsonArguments),
    /// End networks that no guest is on, and remove what crashed ones left
    Rm(remove::RemoveArguments),
    /// Show all that is known of a network and its guests, as JSON
    Inspect(inspect::InspectArguments),
}

pub(crate) async fn run(arguments: NetworkArguments) -> Result<ExitStatus, Failure> {
    match arguments.command {
        NetworkCommand::Create(arguments) => create::run(arguments).await,
        NetworkCommand::Ls(arguments) => list::run(arguments).await,
        NetworkCommand::Rm(arguments) => remove::run(arguments).await,
        NetworkCommand::Inspect(arguments) => inspect::run(arguments).await,
    }
}
