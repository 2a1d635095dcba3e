//! `capsa network rm`: ends networks.

use capsa::NetworkErrorKind;
use capsa::network::Network;
use clap::Args;

use crate::exit_status::ExitStatus;
use crate::failure::Failure;

#[derive(Args)]
pub(crate) struct RemoveArguments {
    /// Also those that have guests, whose links go down, and those that are not there
    #[arg(short, long)]
    force: bool,
    /// The networks
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) async fn run(arguments: RemoveArguments) -> Result<ExitStatus, Failure> {
    for name in &arguments.names {
        if !arguments.force {
            Network::remove(name).await?;
            continue;
        }
        match Network::remove_with_guests(name).await {
            Err(capsa::Error::Network {
                kind: NetworkErrorKind::NotFound,
                ..
            }) => {}
            removed => removed?,
        }
    }
    Ok(ExitStatus::Success)
}
