use capsa::{BackendCapabilities, BackendReport, Capsa};

use crate::arguments::JsonArguments;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

/// A row of the table: what it is called, and what a backend has of it.
type Row = (&'static str, fn(&BackendCapabilities) -> String);

const ROWS: [Row; 26] = [
    ("Linux boot", |can| yes(can.boot.linux)),
    ("UEFI boot", |can| yes(can.boot.uefi)),
    ("CPUs, at most", |can| can.max_cpus.to_string()),
    ("serial console", |can| yes(can.console.serial)),
    ("virtio console", |can| yes(can.console.virtio)),
    ("power button", |can| yes(can.power_button)),
    ("pause and resume", |can| yes(can.pause)),
    ("panic device", |can| yes(can.panic_device)),
    ("triple fault told apart", |can| yes(can.triple_fault)),
    ("disk formats", |can| {
        let formats = can.disk_formats.iter();
        let names: Vec<_> = formats
            .map(|format| format!("{format:?}").to_lowercase())
            .collect();
        if names.is_empty() {
            yes(false)
        } else {
            names.join(", ")
        }
    }),
    ("disk overlays", |can| yes(can.disk_overlay)),
    ("disk rate limits", |can| yes(can.disk_limits)),
    ("disks that grow while in use", |can| yes(can.disk_resize)),
    ("directory shares", |can| yes(can.shares)),
    ("read-only shares", |can| yes(can.read_only_shares)),
    ("shares that hide files", |can| yes(can.share_filters)),
    ("share owners to choose", |can| yes(can.share_owners)),
    ("uncached shares", |can| yes(can.uncached_shares)),
    ("network", |can| yes(can.network)),
    ("MTU other than 1500", |can| yes(can.network_mtu)),
    ("vsock", |can| yes(can.vsock)),
    ("memory balloon", |can| yes(can.balloon)),
    (
        "nested virtualization",
        |can| yes(can.nested_virtualization),
    ),
    ("Rosetta", |can| yes(can.rosetta)),
    ("confined process", |can| yes(can.confined)),
    ("in-process monitor", |can| yes(can.in_process)),
];

fn yes(has: bool) -> String {
    if has { "yes" } else { "-" }.to_owned()
}

pub(crate) async fn run(arguments: JsonArguments) -> Result<ExitStatus, Failure> {
    let reports = Capsa::backends().await;
    if arguments.json {
        output::json(&reports)?;
    } else {
        output::to_stdout(&table(&reports))?;
    }
    Ok(ExitStatus::Success)
}

fn table(reports: &[BackendReport]) -> String {
    if reports.is_empty() {
        return "this build of capsa has no backend for this system".to_owned();
    }
    let mut columns = vec![
        std::iter::once(String::new())
            .chain(["usable here".to_owned()])
            .chain(ROWS.iter().map(|(name, _)| (*name).to_owned()))
            .collect::<Vec<_>>(),
    ];
    columns.extend(reports.iter().map(|report| {
        std::iter::once(report.backend.to_string())
            .chain([yes(report.availability.usable)])
            .chain(ROWS.iter().map(|(_, cell)| cell(&report.capabilities)))
            .collect()
    }));
    let widths: Vec<usize> = columns
        .iter()
        .map(|column| column.iter().map(String::len).max().unwrap_or(0))
        .collect();
    (0..ROWS.len() + 2)
        .map(|row| {
            let cells = columns.iter().zip(&widths).map(|(column, width)| {
                let cell = column.get(row).map_or("", String::as_str);
                format!("{cell:<width$}")
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect::<Vec<_>>()
        .join("\n")
}
