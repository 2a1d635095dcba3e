//! QEMU's own balloon device, steered by QMP.

use std::time::Duration;

use capsa_core::{Error, MemoryReport, Result};
use serde_json::{Value, json};

/// The device in QEMU's tree of objects.
const DEVICE: &str = "/machine/peripheral/balloon";
/// What the device is called among the virtio devices.
const VIRTIO_NAME: &str = "virtio-balloon";
/// What QEMU says for a figure that the guest does not tell.
const UNTOLD: u64 = u64::MAX;
/// How often QEMU asks the guest, in seconds: its least.
const ASK_EVERY: u64 = 1;
/// How often QEMU is asked whether the guest has answered: there is no event for it.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What carries out a command of QMP.
pub(crate) trait Execute {
    /// The command's result.
    ///
    /// # Errors
    /// QEMU refused it, or has ended.
    async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value>;
}

/// Asks the guest, which has `memory` bytes, to give `bytes` of them.
pub(crate) async fn set_target(qemu: &impl Execute, memory: u64, bytes: u64) -> Result<()> {
    // QEMU is told what to leave, and takes nothing below one byte.
    let left = memory.saturating_sub(bytes).max(1);
    qemu.execute("balloon", json!({ "value": left })).await?;
    Ok(())
}

/// What the guest tells from now on; the target is for the caller to fill in.
pub(crate) async fn report(qemu: &impl Execute, memory: u64) -> Result<MemoryReport> {
    if !has_driver(qemu).await? {
        return Err(Error::InvalidState {
            operation: "ask for the guest's memory",
            state: "has not loaded the balloon's driver".to_owned(),
        });
    }
    let every = json!({
        "path": DEVICE,
        "property": "guest-stats-polling-interval",
        "value": ASK_EVERY,
    });
    qemu.execute("qom-set", every).await?;
    let (before, _) = statistics(qemu).await?;
    let figures = loop {
        let (when, figures) = statistics(qemu).await?;
        if when != before {
            break figures;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    let balloon = qemu.execute("query-balloon", Value::Null).await?;
    let left = balloon.get("actual").and_then(Value::as_u64);
    let mut report = read(&figures);
    report.balloon_actual = memory.saturating_sub(left.unwrap_or(memory));
    Ok(report)
}

/// When the guest told something last, in seconds since 1970 (0 for never), and what.
async fn statistics(qemu: &impl Execute) -> Result<(u64, Value)> {
    let what = json!({ "path": DEVICE, "property": "guest-stats" });
    let told = qemu.execute("qom-get", what).await?;
    let when = told.get("last-update").and_then(Value::as_u64);
    let figures = told.get("stats").cloned();
    Ok((when.unwrap_or(0), figures.unwrap_or_default()))
}

async fn has_driver(qemu: &impl Execute) -> Result<bool> {
    let devices = qemu.execute("x-query-virtio", Value::Null).await?;
    let path = devices.as_array().into_iter().flatten().find_map(|device| {
        let is_ours = device.get("name").and_then(Value::as_str) == Some(VIRTIO_NAME);
        is_ours.then(|| device.get("path").cloned()).flatten()
    });
    let Some(path) = path else { return Ok(false) };
    let status = qemu
        .execute("x-query-virtio-status", json!({ "path": path }))
        .await?;
    let flags = status.pointer("/status/statuses").and_then(Value::as_array);
    Ok(flags.into_iter().flatten().any(|flag| {
        flag.as_str()
            .is_some_and(|flag| flag.contains("VIRTIO_CONFIG_S_DRIVER_OK"))
    }))
}

fn read(figures: &Value) -> MemoryReport {
    let figure = |name: &str| {
        let value = figures.get(name).and_then(Value::as_u64);
        value.filter(|value| *value != UNTOLD)
    };
    let mut report = MemoryReport::default();
    report.total = figure("stat-total-memory");
    report.free = figure("stat-free-memory");
    report.available = figure("stat-available-memory");
    report.disk_caches = figure("stat-disk-caches");
    report.swapped_in = figure("stat-swap-in");
    report.swapped_out = figure("stat-swap-out");
    report.major_faults = figure("stat-major-faults");
    report.minor_faults = figure("stat-minor-faults");
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_that_the_guest_does_not_tell_are_none() {
        let report = read(&json!({
            "stat-total-memory": 200 << 20,
            "stat-free-memory": 0,
            "stat-swap-in": u64::MAX,
            "stat-major-faults": "many",
        }));

        assert_eq!(report.total, Some(200 << 20));
        assert_eq!(report.free, Some(0));
        assert_eq!(report.swapped_in, None);
        assert_eq!(report.major_faults, None);
        assert_eq!(report.disk_caches, None);
    }
}
