//! The balloon, as the library's requests see it.

use std::os::fd::BorrowedFd;

use capsa_core::MemoryReport;
use capsa_virtio::balloon::BalloonHandle;
use capsa_virtio::setup::DeviceControl;

use crate::machine::Machine;

/// Requests that wait for the guest at once: it need not answer.
const MOST_WAITING: usize = 64;

/// The machine's balloon, if it has one, and who waits for its guest's answer.
pub(super) struct MemoryReports {
    balloon: Option<BalloonHandle>,
    waiting: Vec<u32>,
    /// How many statistics there had been when the first of them asked.
    seen: u64,
}

impl MemoryReports {
    pub(super) fn of(machine: &Machine) -> Self {
        let balloon = machine.controls().iter().find_map(|control| match control {
            DeviceControl::Balloon(handle) => Some(handle.clone()),
            _ => None,
        });
        Self {
            balloon,
            waiting: Vec::new(),
            seen: 0,
        }
    }

    /// Readable when [`take`](Self::take) may have something.
    pub(super) fn changed(&self) -> Option<BorrowedFd<'_>> {
        self.balloon.as_ref().map(BalloonHandle::changed)
    }

    fn balloon(&self) -> Result<&BalloonHandle, String> {
        self.balloon
            .as_ref()
            .ok_or_else(|| "it was built without a balloon".to_owned())
    }

    pub(super) fn set_target(&self, bytes: u64) -> Result<(), String> {
        self.balloon()?.set_target(bytes);
        Ok(())
    }

    /// Asks the guest on behalf of request `number`.
    pub(super) fn ask(&mut self, number: u32) -> Result<(), String> {
        let balloon = self.balloon()?;
        let seen = balloon.statistics().0;
        if self.waiting.len() >= MOST_WAITING {
            return Err("too many wait for the guest's answer already".to_owned());
        }
        if !balloon.request_statistics() {
            return Err("its guest has not loaded the balloon's driver".to_owned());
        }
        if self.waiting.is_empty() {
            self.seen = seen;
        }
        self.waiting.push(number);
        Ok(())
    }

    /// The answers that have come.
    pub(super) fn take(&mut self) -> Vec<(u32, MemoryReport)> {
        let Some(balloon) = &self.balloon else {
            return Vec::new();
        };
        balloon.clear_changed();
        let (count, told) = balloon.statistics();
        if count == self.seen {
            return Vec::new();
        }
        let mut report = MemoryReport::default();
        report.balloon_target = balloon.target();
        report.balloon_actual = balloon.actual();
        report.reported_free = Some(balloon.metrics().reported_bytes());
        report.total = told.total;
        report.free = told.free;
        report.available = told.available;
        report.disk_caches = told.disk_caches;
        report.swapped_in = told.swapped_in;
        report.swapped_out = told.swapped_out;
        report.major_faults = told.major_faults;
        report.minor_faults = told.minor_faults;
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().map(|number| (number, report)).collect()
    }
}
