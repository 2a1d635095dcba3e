//! `capsa rm`: removes what is kept of sandboxes.

use capsa::Sandbox;
use clap::Args;

use crate::exit_status::ExitStatus;
use crate::failure::Failure;

#[derive(Args)]
pub(crate) struct RemoveArguments {
    /// End those that run
    #[arg(short, long)]
    force: bool,
    /// The sandboxes
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

pub(crate) async fn run(arguments: RemoveArguments) -> Result<ExitStatus, Failure> {
    for name in &arguments.names {
        if arguments.force
            && let Some(sandbox) = super::stop::running(name).await?
        {
            sandbox.kill().await?;
            // Its process writes the end down before it goes.
            let _ended = Sandbox::wait_until_gone(name).await;
        }
        match Sandbox::remove(name).await {
            Err(capsa::SandboxError::Vm(capsa::Error::InvalidSetting { .. }))
                if arguments.force && Sandbox::find(name).await.is_err() => {}
            other => other?,
        }
    }
    Ok(ExitStatus::Success)
}
