//! Resident memory of a monitor besides its guest's.

use std::fs;

use anyhow::{Context, Result};

/// What a process has mapped, split by whether a mapping can be the guest's memory.
pub(crate) struct Memory {
    guest_kib: u64,
    /// Resident KiB of everything else.
    pub(crate) other_kib: u64,
}

impl Memory {
    /// Reads the memory map of process `pid`. Mappings at least half as long as the guest's memory
    /// of `guest_kib` are taken for it.
    pub(crate) fn of(pid: u32, guest_kib: u64) -> Result<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))
            .with_context(|| format!("cannot read the memory map of process {pid}"))?;
        let mut memory = Self {
            guest_kib: 0,
            other_kib: 0,
        };
        let mut is_guest = false;
        for line in maps.lines() {
            if let Some(size) = value(line, "Size:") {
                is_guest = size >= guest_kib / 2;
            } else if let Some(size) = value(line, "Rss:") {
                *if is_guest {
                    &mut memory.guest_kib
                } else {
                    &mut memory.other_kib
                } += size;
            }
        }
        Ok(memory)
    }

    /// Whether this is the process that runs the guest: more than 1 MiB of its memory is resident.
    pub(crate) fn has_guest(&self) -> bool {
        self.guest_kib > 1024
    }
}

/// The processes that `pid` started, and those that they started.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next).copied() {
        next += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
    }
    found
}

fn value(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?
        .trim()
        .strip_suffix("kB")?
        .trim()
        .parse()
        .ok()
}
