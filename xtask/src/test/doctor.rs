//! Asks the command line that was just built whether this machine's KVM is of use: `capsa doctor --json`.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Deserialize)]
struct Diagnosis {
    backends: Vec<Report>,
}

#[derive(Deserialize)]
struct Report {
    backend: String,
    availability: Availability,
}

#[derive(Deserialize)]
struct Availability {
    usable: bool,
    reason: String,
}

/// The inner error says why it is not usable.
pub(crate) fn kvm_is_usable(command_line: &Path) -> Result<Result<(), String>> {
    let output = Command::new(command_line)
        .args(["doctor", "--json"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", command_line.display()))?;
    // Its exit status says whether any backend is usable; what was found is there in both cases.
    verdict(&output.stdout)
}

fn verdict(diagnosis: &[u8]) -> Result<Result<(), String>> {
    let diagnosis: Diagnosis =
        serde_json::from_slice(diagnosis).context("cannot read what `capsa doctor --json` says")?;
    let kvm = diagnosis
        .backends
        .into_iter()
        .find(|report| report.backend == "kvm");
    Ok(match kvm {
        Some(Report { availability, .. }) if availability.usable => Ok(()),
        Some(Report { availability, .. }) => Err(availability.reason),
        None => Err("`capsa doctor` does not know of KVM".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_that_is_not_usable_is_told_with_its_reason() {
        let diagnosis = br#"{"backends": [
            {"backend": "kvm", "availability": {"present": true, "usable": false, "reason": "too slow"}},
            {"backend": "qemu", "availability": {"present": true, "usable": true, "reason": "found"}}
        ], "auto": "qemu"}"#;

        assert_eq!(verdict(diagnosis).unwrap(), Err("too slow".to_owned()));
    }

    #[test]
    fn diagnosis_that_cannot_be_read_is_an_error() {
        assert!(verdict(b"").is_err());
    }
}
