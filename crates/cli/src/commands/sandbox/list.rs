//! `capsa ps`: the sandboxes of this user that have a name.

use capsa::{CommandEnd, Sandbox, SandboxInfo, SandboxState};

use crate::arguments::JsonArguments;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::{output, table};

/// How much of a command is shown.
const COMMAND_CHARACTERS: usize = 40;

pub(crate) async fn run(arguments: JsonArguments) -> Result<ExitStatus, Failure> {
    let sandboxes = Sandbox::list().await?;
    if arguments.json {
        output::json(&sandboxes)?;
    } else {
        output::to_stdout(&table(&sandboxes))?;
    }
    Ok(ExitStatus::Success)
}

fn table(sandboxes: &[SandboxInfo]) -> String {
    let head = [
        "NAME", "STATE", "AGE", "CPUS", "MEMORY", "ROOTFS", "COMMAND",
    ];
    table::of(head, sandboxes.iter().map(row))
}

fn row(info: &SandboxInfo) -> [String; 7] {
    let command = info.command.join(" ");
    let mut shown: String = command.chars().take(COMMAND_CHARACTERS).collect();
    if shown.len() < command.len() {
        shown.push('…');
    }
    [
        info.name.clone(),
        state(&info.state),
        table::age(info.age()),
        info.cpus.to_string(),
        info.memory.to_string(),
        info.rootfs.clone(),
        shown,
    ]
}

fn state(state: &SandboxState) -> String {
    match state {
        SandboxState::Starting => "starting".to_owned(),
        SandboxState::Running => "running".to_owned(),
        SandboxState::Crashed => "crashed".to_owned(),
        SandboxState::Ended {
            command: Some(end), ..
        } => match end {
            CommandEnd::Exited(status) => format!("ended ({})", status.shell_code()),
            CommandEnd::TimedOut => "ended (124)".to_owned(),
            CommandEnd::Failed { code, .. } => format!("ended ({code})"),
            _ => "ended".to_owned(),
        },
        SandboxState::Ended { exit, .. } => match exit {
            capsa::VmExit::PoweredOff | capsa::VmExit::Killed => "ended".to_owned(),
            capsa::VmExit::MonitorFailure(_) => "failed (monitor)".to_owned(),
            capsa::VmExit::GuestPanic(_) => "failed (guest panic)".to_owned(),
            _ => "failed".to_owned(),
        },
        _ => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_nothing_is_its_head() {
        assert!(table(&[]).starts_with("NAME"));
    }
}
