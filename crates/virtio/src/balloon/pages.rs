//! The inflate, deflate and reporting queues.

use super::config::{MAX_PAGES, PAGE};
use super::metrics::{BalloonMetrics, count};
use super::reclaim::discard;
use crate::queue::Cursor;
use crate::{Chain, DeviceError, GuestRam};
use vm_memory::{GuestAddress, GuestMemoryBackend};

/// The guest gives the pages whose numbers are in the chain.
pub(super) fn inflate(
    chain: &Chain,
    ram: &GuestRam,
    metrics: &BalloonMetrics,
) -> Result<(), DeviceError> {
    let mut run = Run::default();
    each_page(chain, ram, |number| {
        let start = u64::from(number) * PAGE;
        if !ram.address_in_range(GuestAddress(start)) {
            count(&metrics.rejected, 1);
        } else if let Some(done) = run.add(start) {
            give(done, ram, &metrics.inflated);
        }
    })?;
    give(run, ram, &metrics.inflated);
    Ok(())
}

/// The guest takes pages back. It gets them by using them.
pub(super) fn deflate(
    chain: &Chain,
    ram: &GuestRam,
    metrics: &BalloonMetrics,
) -> Result<(), DeviceError> {
    each_page(chain, ram, |_| count(&metrics.deflated, PAGE))
}

/// The guest does not use the memory in the chain's buffers at the moment (§5.5.6.7).
pub(super) fn report(chain: &Chain, ram: &GuestRam, metrics: &BalloonMetrics) {
    for segment in chain.writable() {
        let run = Run {
            start: segment.addr.0,
            len: u64::from(segment.len),
        };
        give(run, ram, &metrics.reported);
    }
}

/// Pages side by side.
#[derive(Default, Clone, Copy)]
struct Run {
    start: u64,
    len: u64,
}

impl Run {
    /// Takes a page in, or begins anew with it and returns what was there.
    fn add(&mut self, page: u64) -> Option<Self> {
        if self.len > 0 && page == self.start + self.len {
            self.len += PAGE;
        } else if self.len > 0 && page + PAGE == self.start {
            // Linux names the pages from the top down as often as from the bottom up.
            self.start = page;
            self.len += PAGE;
        } else {
            return Some(std::mem::replace(
                self,
                Self {
                    start: page,
                    len: PAGE,
                },
            ));
        }
        None
    }
}

fn give(run: Run, ram: &GuestRam, counter: &std::sync::atomic::AtomicU64) {
    match discard(ram, run.start, run.len) {
        Ok(bytes) => count(counter, bytes),
        Err(error) => tracing::debug!(%error, "guest memory could not be given back"),
    }
}

fn each_page(chain: &Chain, ram: &GuestRam, mut page: impl FnMut(u32)) -> Result<(), DeviceError> {
    let mut cursor = Cursor::new(chain.readable());
    if cursor.remaining() > 4 * MAX_PAGES {
        return Err(DeviceError::Protocol("too many pages in one request"));
    }
    while cursor.remaining() >= 4 {
        let mut number = [0; 4];
        cursor.read_exact(ram, &mut number)?;
        page(u32::from_le_bytes(number));
    }
    Ok(())
}
