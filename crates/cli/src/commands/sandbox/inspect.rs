//! `capsa inspect`: all that is known of a sandbox, as JSON.

use capsa::{Sandbox, SandboxInfo};
use clap::Args;
use serde::Serialize;

use super::network_facts::ShownNetwork;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Args)]
pub(crate) struct InspectArguments {
    /// The sandbox
    name: String,
}

#[derive(Serialize)]
struct Inspected {
    #[serde(flatten)]
    info: SandboxInfo,
    directory: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings_ms: Option<std::collections::BTreeMap<String, f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<ShownNetwork>,
}

pub(crate) async fn run(arguments: InspectArguments) -> Result<ExitStatus, Failure> {
    let info = Sandbox::find(&arguments.name).await?;
    let mut inspected = Inspected {
        directory: info.directory.display().to_string(),
        info,
        timings_ms: None,
        status: None,
        network: None,
    };
    if let Some(sandbox) = super::stop::running(&arguments.name).await? {
        let phases = sandbox.timings().phases().into_iter();
        inspected.timings_ms = Some(
            phases
                .map(|(phase, duration)| (phase.to_string(), duration.as_secs_f64() * 1000.0))
                .collect(),
        );
        if let Some(network) = sandbox.network().await? {
            inspected.network = Some(ShownNetwork::of(&network).await?);
        }
        inspected.status = Some(format!("{:?}", sandbox.status().await).to_lowercase());
    }
    output::json(&inspected)?;
    Ok(ExitStatus::Success)
}
