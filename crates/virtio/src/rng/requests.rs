//! The request queue: each chain is a buffer to fill.

use std::io;
use std::sync::atomic::Ordering;

use rustix::rand::{GetRandomFlags, getrandom};

use super::config::MAX_REQUEST;
use super::metrics::RngMetrics;
use crate::queue::Cursor;
use crate::rate::Limiter;
use crate::{Chain, DeviceError, GuestRam, Progress, Virtqueue};

/// Requests served per call.
const BUDGET: u32 = 32;

pub(super) fn serve(
    queue: &mut Virtqueue,
    ram: &GuestRam,
    limiter: &mut Limiter,
    metrics: &RngMetrics,
) -> Result<Progress, DeviceError> {
    queue.disable_kicks(ram)?;
    for _ in 0..BUDGET {
        if !queue.has_available(ram)? && !queue.enable_kicks(ram)? {
            return Ok(Progress::Done);
        }
        let passes = limiter.may_pass();
        if !passes.map_err(|source| DeviceError::Io {
            doing: "setting the rate timer",
            source,
        })? {
            metrics.throttled.fetch_add(1, Ordering::Relaxed);
            return Ok(Progress::Done);
        }
        let Some(chain) = queue.pop(ram)? else {
            return Ok(Progress::Done);
        };
        let given = fill(&chain, ram)?;
        limiter.take(u64::from(given));
        metrics.bytes.fetch_add(u64::from(given), Ordering::Relaxed);
        queue.push(ram, chain.head(), given)?;
    }
    Ok(Progress::More)
}

fn fill(chain: &Chain, ram: &GuestRam) -> Result<u32, DeviceError> {
    let mut cursor = Cursor::new(chain.writable());
    let wanted = cursor.remaining().min(MAX_REQUEST);
    let mut left = wanted;
    let mut chunk = [0u8; 4096];
    while left > 0 {
        let (chunk, _) = chunk.split_at_mut(left.min(4096) as usize);
        random(chunk)?;
        cursor.write_all(ram, chunk)?;
        left -= chunk.len() as u64;
    }
    Ok(wanted as u32)
}

fn random(mut buf: &mut [u8]) -> Result<(), DeviceError> {
    while !buf.is_empty() {
        match getrandom(&mut *buf, GetRandomFlags::empty()) {
            Ok(count) => buf = buf.split_at_mut(count).1,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                let source = io::Error::from(errno);
                return Err(DeviceError::Io {
                    doing: "asking the host for random numbers",
                    source,
                });
            }
        }
    }
    Ok(())
}
