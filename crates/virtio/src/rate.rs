//! Token buckets that slow a device down, with a timer that wakes it when it may go on.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use serde::{Deserialize, Serialize};

use crate::{Interest, Registrar, Source};

const NANOS: i128 = 1_000_000_000;

/// A rate, and how much may be used at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Units per second, 1 at least.
    pub per_second: u64,
    /// Units that may be used at once, 1 at least.
    pub burst: u64,
}

/// The limits of a device; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RateLimits {
    /// Bytes carried.
    pub bytes: Option<Rate>,
    /// Requests served.
    pub operations: Option<Rate>,
}

/// A bucket that fills with time. A request passes if anything is in it, and may leave it in debt: so a request larger
/// than the burst passes too, and the rate holds over time.
#[derive(Debug)]
struct Bucket {
    per_second: i128,
    /// In billionths of a token, as is `level`.
    capacity: i128,
    level: i128,
    filled: Instant,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        let capacity = i128::from(rate.burst.max(1)) * NANOS;
        Self {
            per_second: i128::from(rate.per_second.max(1)),
            capacity,
            level: capacity,
            filled: now,
        }
    }

    /// How long to wait until something may pass; zero if now.
    fn wait(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.filled);
        self.filled = now;
        let gained = self.per_second.saturating_mul(passed.as_nanos() as i128);
        self.level = self.level.saturating_add(gained).min(self.capacity);
        if self.level > 0 {
            return Duration::ZERO;
        }
        let nanos = (-self.level) / self.per_second + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn take(&mut self, tokens: u64) {
        self.level = self.level.saturating_sub(i128::from(tokens) * NANOS);
    }
}

/// Decides whether the next request may pass, and wakes the device when it may.
pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    timer: Option<Source<OwnedFd>>,
    waiting: bool,
}

impl Limiter {
    /// A limiter whose timer is registered under `token`. Needs no descriptor if nothing is limited.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(limits: RateLimits, events: &Registrar, token: u32) -> io::Result<Self> {
        let now = Instant::now();
        let timer = if limits == RateLimits::default() {
            None
        } else {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let mut timer = events.source(timerfd_create(TimerfdClockId::Monotonic, flags)?, token);
            timer.watch(Some(Interest::Readable))?;
            Some(timer)
        };
        Ok(Self {
            bytes: limits.bytes.map(|rate| Bucket::new(rate, now)),
            operations: limits.operations.map(|rate| Bucket::new(rate, now)),
            timer,
            waiting: false,
        })
    }

    /// Whether the next request may pass now. If not, the timer's event comes when it may.
    ///
    /// # Errors
    /// The timer cannot be set.
    pub fn may_pass(&mut self) -> io::Result<bool> {
        if self.waiting {
            return Ok(false);
        }
        let Some(timer) = &self.timer else {
            return Ok(true);
        };
        let now = Instant::now();
        let wait = [&mut self.bytes, &mut self.operations]
            .into_iter()
            .flatten()
            .map(|bucket| bucket.wait(now))
            .max()
            .unwrap_or_default();
        if wait.is_zero() {
            return Ok(true);
        }
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec::try_from(wait).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            }),
        };
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
        self.waiting = true;
        Ok(false)
    }

    /// Accounts for a request of `bytes`.
    pub fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }

    /// To be called upon the timer's event.
    pub fn timer_fired(&mut self) {
        if let Some(timer) = &self.timer {
            // Not yet due if the event is a spurious one; the timer stays set then.
            if rustix::io::read(timer, &mut [0u8; 8]).is_ok() {
                self.waiting = false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(per_second: u64, burst: u64) -> (Bucket, Instant) {
        let now = Instant::now();
        (Bucket::new(Rate { per_second, burst }, now), now)
    }

    #[test]
    fn bucket_lets_the_burst_pass_at_once_and_then_waits() {
        let (mut bucket, now) = bucket(100, 10);
        assert!(bucket.wait(now).is_zero());
        bucket.take(10);
        let wait = bucket.wait(now);
        assert!(
            wait > Duration::ZERO && wait <= Duration::from_millis(10),
            "{wait:?}"
        );
        assert!(bucket.wait(now + wait).is_zero());
    }

    #[test]
    fn bucket_makes_up_for_a_request_larger_than_the_burst() {
        let (mut bucket, now) = bucket(100, 10);
        bucket.take(1010);
        let wait = bucket.wait(now);
        assert_eq!(wait.as_secs(), 10);
    }

    #[test]
    fn bucket_holds_no_more_than_the_burst() {
        let (mut bucket, now) = bucket(100, 10);
        let later = now + Duration::from_secs(3600);
        assert!(bucket.wait(later).is_zero());
        bucket.take(10);
        assert!(!bucket.wait(later).is_zero());
    }

    #[test]
    fn bucket_of_extreme_numbers_does_not_overflow() {
        let (mut bucket, now) = bucket(u64::MAX, u64::MAX);
        for _ in 0..1000 {
            bucket.take(u64::MAX);
        }
        assert!(bucket.wait(now) >= Duration::from_secs(998));
        assert!(bucket.wait(now + Duration::from_secs(1 << 40)).is_zero());
    }
}
