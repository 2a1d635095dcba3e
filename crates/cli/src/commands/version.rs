use serde::Serialize;

use crate::arguments::JsonArguments;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Serialize)]
struct Version {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

pub(crate) fn run(arguments: &JsonArguments) -> Result<ExitStatus, Failure> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    if arguments.json {
        output::json(&version)?;
    } else {
        output::to_stdout(&format!(
            "capsa {} ({}, {})",
            version.version, version.os, version.arch
        ))?;
    }
    Ok(ExitStatus::Success)
}
