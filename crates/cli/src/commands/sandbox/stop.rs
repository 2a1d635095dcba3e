//! `capsa stop` and `capsa kill`.

use std::time::Duration;

use capsa::{Sandbox, SandboxState};
use clap::Args;

use crate::commands::run::parse_time;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Args)]
pub(crate) struct StopArguments {
    /// How long it may take to shut down before it is ended: seconds, or a number with s, m or h
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_time)]
    grace: Duration,
    /// The sandboxes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(Args)]
pub(crate) struct KillArguments {
    /// The sandboxes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) async fn stop(arguments: StopArguments) -> Result<ExitStatus, Failure> {
    for name in &arguments.names {
        if let Some(sandbox) = running(name).await?
            && sandbox.stop(arguments.grace).await?.killed
        {
            output::to_stderr(&format!(
                "warning: {name} did not shut down in time and was ended"
            ));
        }
    }
    Ok(ExitStatus::Success)
}

pub(crate) async fn kill(arguments: KillArguments) -> Result<ExitStatus, Failure> {
    for name in &arguments.names {
        if let Some(sandbox) = running(name).await? {
            sandbox.kill().await?;
        }
    }
    Ok(ExitStatus::Success)
}

/// The sandbox, unless it has ended already.
pub(super) async fn running(name: &str) -> Result<Option<Sandbox>, Failure> {
    match Sandbox::find(name).await?.state {
        SandboxState::Ended { .. } | SandboxState::Crashed => Ok(None),
        _ => match Sandbox::attach(name).await {
            Ok(sandbox) => Ok(Some(sandbox)),
            Err(capsa::SandboxError::Vm(capsa::Error::Ended(_))) => Ok(None),
            Err(error) => Err(error.into()),
        },
    }
}
