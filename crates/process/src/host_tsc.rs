use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// How long the counter is watched.
const WATCH: Duration = Duration::from_millis(5);
/// How often a reading of both clocks is tried; the closest pair counts, so that it does not matter
/// when this thread is interrupted.
const READINGS: usize = 16;

/// The frequency of this host's time stamp counter in kHz, which is also that of a guest whose
/// counter is the host's. Blocks for some milliseconds, the first time. `None` where there is none.
pub fn host_tsc_khz() -> Option<u64> {
    static MEASURED: OnceLock<Option<u64>> = OnceLock::new();
    *MEASURED.get_or_init(|| {
        let first = reading()?;
        thread::sleep(WATCH);
        let second = reading()?;
        let ticks = second.ticks.checked_sub(first.ticks)?;
        let nanoseconds = second.at.duration_since(first.at).as_nanos();
        let khz = u128::from(ticks) * 1_000_000 / nanoseconds.max(1);
        u64::try_from(khz).ok().filter(|&khz| khz > 0)
    })
}

struct Reading {
    ticks: u64,
    at: Instant,
}

/// Both clocks at the same moment, as nearly as can be.
fn reading() -> Option<Reading> {
    (0..READINGS)
        .filter_map(|_| {
            let before = Instant::now();
            let ticks = ticks()?;
            let between = before.elapsed();
            let at = before + between / 2;
            Some((between, Reading { ticks, at }))
        })
        .min_by_key(|(between, _)| *between)
        .map(|(_, reading)| reading)
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: every x86-64 processor has the instruction, and it only reads.
    Some(unsafe { core::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_counter_runs_at_a_plausible_frequency() {
        let khz = host_tsc_khz().unwrap();
        assert!((100_000..10_000_000).contains(&khz), "{khz}");
    }
}
