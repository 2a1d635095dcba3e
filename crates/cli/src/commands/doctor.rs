use std::path::PathBuf;

use capsa::{Availability, BackendKind, BackendReport, Capsa};
use capsa_guest::discover::{DiscoverError, Found, Origin, SearchPath};
use capsa_guest::inspect::{Detail, inspect_file};
use serde::Serialize;

use crate::arguments::JsonArguments;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

/// Everything that `capsa doctor` finds.
#[derive(Serialize)]
struct Diagnosis {
    backends: Vec<BackendReport>,
    /// What `--backend auto` takes.
    auto: Option<BackendKind>,
    kernel: GuestFile,
    initramfs: GuestFile,
}

/// The default kernel or initramfs.
#[derive(Serialize)]
struct GuestFile {
    path: Option<PathBuf>,
    /// Who chose it, or why there is none.
    reason: String,
    /// What it is, where it can be used.
    description: Option<String>,
    usable: bool,
}

pub(crate) async fn run(arguments: JsonArguments) -> Result<ExitStatus, Failure> {
    let backends = Capsa::backends().await;
    let search = SearchPath::from_environment();
    let diagnosis = Diagnosis {
        auto: backends
            .iter()
            .find(|report| report.availability.usable)
            .map(|report| report.backend),
        backends,
        kernel: kernel(&search),
        initramfs: initramfs(&search),
    };
    if arguments.json {
        output::json(&diagnosis)?;
    } else {
        output::to_stdout(&describe(&diagnosis))?;
    }
    Ok(match diagnosis.auto {
        Some(_) => ExitStatus::Success,
        None => ExitStatus::Failed,
    })
}

fn kernel(search: &SearchPath) -> GuestFile {
    let mut file = guest_file(search.kernel(None));
    if let Some(path) = &file.path {
        match inspect_file(path, Detail::Version) {
            Ok(image) => file.description = Some(image.to_string()),
            Err(error) => {
                file.usable = false;
                file.reason = error.to_string();
            }
        }
    }
    file
}

fn initramfs(search: &SearchPath) -> GuestFile {
    let mut file = guest_file(search.initramfs(None));
    if let Some(path) = &file.path {
        match std::fs::metadata(path) {
            Ok(metadata) => {
                file.description = Some(format!("{} KiB", metadata.len().div_ceil(1024)))
            }
            Err(error) => {
                file.usable = false;
                file.reason = error.to_string();
            }
        }
    }
    file
}

fn guest_file(found: Result<Found, DiscoverError>) -> GuestFile {
    match found {
        Ok(found) => GuestFile {
            reason: match &found.origin {
                Origin::Variable(name) => format!("named by {name}"),
                Origin::Default(directory) => format!("the default in {}", directory.display()),
                _ => "named on the command line".to_owned(),
            },
            path: Some(found.path),
            description: None,
            usable: true,
        },
        Err(error) => GuestFile {
            path: None,
            reason: error.to_string(),
            description: None,
            usable: false,
        },
    }
}

fn describe(diagnosis: &Diagnosis) -> String {
    let mut lines = vec!["Backends".to_owned()];
    for report in &diagnosis.backends {
        describe_backend(report, &mut lines);
    }
    lines.push("Guest files".to_owned());
    for (name, file) in [
        ("kernel", &diagnosis.kernel),
        ("initramfs", &diagnosis.initramfs),
    ] {
        let state = if file.usable { "found" } else { "MISSING" };
        lines.push(format!("  {name:<10} {state}"));
        for line in [
            file.path.as_ref().map(|path| path.display().to_string()),
            file.description.clone(),
            Some(file.reason.clone()),
        ]
        .into_iter()
        .flatten()
        {
            indent(&line, &mut lines);
        }
    }
    lines.push(match diagnosis.auto {
        Some(backend) => format!("A virtual machine would run on {backend}."),
        None => "No virtual machine can run here: follow one of the fixes above.".to_owned(),
    });
    lines.join("\n")
}

fn describe_backend(report: &BackendReport, lines: &mut Vec<String>) {
    let Availability {
        present,
        usable,
        reason,
        fix,
        version,
        instructions_per_second,
        ..
    } = &report.availability;
    let state = match (present, usable) {
        (_, true) => "usable",
        (true, false) => "present, but NOT usable",
        (false, false) => "not present",
    };
    lines.push(format!("  {:<10} {state}", report.backend));
    indent(reason, lines);
    if let Some(version) = version {
        indent(&format!("version: {version}"), lines);
    }
    if let Some(speed) = instructions_per_second {
        indent(
            &format!(
                "speed: {} million guest kernel instructions a second",
                millions(*speed)
            ),
            lines,
        );
    }
    if let Some(fix) = fix {
        indent(&format!("fix: {fix}"), lines);
    }
}

fn millions(count: u64) -> String {
    let tenths = count / 100_000;
    if tenths < 1000 {
        format!("{}.{}", tenths / 10, tenths % 10)
    } else {
        (tenths / 10).to_string()
    }
}

fn indent(text: &str, lines: &mut Vec<String>) {
    lines.extend(text.lines().map(|line| format!("             {line}")));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_shown_with_as_many_digits_as_help() {
        assert_eq!(millions(1_700_000), "1.7");
        assert_eq!(millions(8_400_000_000), "8400");
    }
}
