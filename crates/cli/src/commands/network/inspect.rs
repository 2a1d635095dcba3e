//! `capsa network inspect`: all that is known of a network, as JSON.

use capsa::network::{GuestInfo, Network, NetworkInfo, NetworkState};
use clap::Args;
use serde::Serialize;

use crate::commands::sandbox::network_facts::{ShownAddresses, ShownForward};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Args)]
pub(crate) struct InspectArguments {
    /// The network
    name: String,
}

#[derive(Serialize)]
struct Inspected {
    #[serde(flatten)]
    info: NetworkInfo,
    directory: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    guests: Option<Vec<Guest>>,
}

#[derive(Serialize)]
struct Guest {
    name: String,
    connected: bool,
    #[serde(flatten)]
    addresses: ShownAddresses,
    forwards: Vec<ShownForward>,
    bytes_from: u64,
    bytes_to: u64,
    flows: u32,
    denied: u64,
}

pub(crate) async fn run(arguments: InspectArguments) -> Result<ExitStatus, Failure> {
    let info = Network::find(&arguments.name).await?;
    let guests = match info.state {
        NetworkState::Crashed => None,
        _ => Some(guests(&Network::attach(&arguments.name).await?).await?),
    };
    output::json(&Inspected {
        directory: info.directory.display().to_string(),
        info,
        guests,
    })?;
    Ok(ExitStatus::Success)
}

async fn guests(network: &Network) -> Result<Vec<Guest>, Failure> {
    let forwards = network.forwards().await?;
    let guests = network.guests().await?.into_iter().map(|info| {
        let GuestInfo {
            addresses,
            connected,
            flows,
            counters,
            ..
        } = info;
        Guest {
            forwards: forwards
                .iter()
                .filter(|forward| forward.guest == counters.guest)
                .map(ShownForward::of)
                .collect(),
            name: counters.guest.to_string(),
            connected,
            addresses: ShownAddresses::of(&addresses),
            bytes_from: counters.bytes_from,
            bytes_to: counters.bytes_to,
            flows: flows.0.saturating_add(flows.1),
            denied: counters.denied,
        }
    });
    Ok(guests.collect())
}
