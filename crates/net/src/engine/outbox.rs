//! Frames on their way to one guest, or from it, over a link with faults.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::LinkConditions;
use crate::wire::frame::{Frame, FramePool};

/// One direction of a link whose conditions are not ideal: when each frame comes out.
#[derive(Debug)]
pub(crate) struct Shaper {
    rate: Option<u64>,
    latency: Duration,
    loss_ppm: u32,
    partitioned: bool,
    /// When the last byte before has passed the rate limit.
    free_at: Option<Instant>,
    random: u64,
}

/// A burst may pass at once, so that the clock's granularity does not eat the rate.
const BURST: Duration = Duration::from_millis(2);

impl Shaper {
    pub(crate) fn new(conditions: &LinkConditions, rate: Option<u64>, seed: u64) -> Self {
        Self {
            rate,
            latency: conditions.latency,
            loss_ppm: conditions.loss_ppm,
            partitioned: conditions.partitioned,
            free_at: None,
            random: seed | 1,
        }
    }

    /// Whether frames pass it as if it were not there.
    pub(crate) const fn is_ideal(&self) -> bool {
        self.rate.is_none() && self.latency.is_zero() && self.loss_ppm == 0 && !self.partitioned
    }

    /// When a frame of `len` bytes comes out; `None` when it gets lost.
    pub(crate) fn pass(&mut self, len: usize, now: Instant) -> Option<Instant> {
        if self.partitioned || self.loses() {
            return None;
        }
        let mut at = now;
        if let Some(rate) = self.rate {
            let takes = Duration::from_secs_f64(len as f64 / rate.max(1) as f64);
            let free = self
                .free_at
                .map_or(now, |free| free.max(now.checked_sub(BURST).unwrap_or(now)))
                + takes;
            self.free_at = Some(free);
            at = free.max(now);
        }
        Some(at + self.latency)
    }

    fn loses(&mut self) -> bool {
        if self.loss_ppm == 0 {
            return false;
        }
        // xorshift64: nobody gains by guessing which frame gets lost.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % 1_000_000 < u64::from(self.loss_ppm)
    }
}

/// What waits to be sent to one guest.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// Ready to be sent.
    pub(crate) ready: VecDeque<Frame>,
    /// Held by the link's conditions until their time comes; in the order of their times.
    held: VecDeque<(Instant, Frame)>,
    shaper: Shaper,
    /// Memory that the frames of both queues take up, and how much they may.
    cost: usize,
    limit: usize,
    pub(crate) dropped: u64,
}

impl Outbox {
    pub(crate) fn new(shaper: Shaper, limit: usize) -> Self {
        Self {
            ready: VecDeque::new(),
            held: VecDeque::new(),
            shaper,
            cost: 0,
            limit,
            dropped: 0,
        }
    }

    pub(crate) fn set_shaper(&mut self, shaper: Shaper) {
        self.shaper = shaper;
        while let Some((_, frame)) = self.held.pop_front() {
            self.ready.push_back(frame);
        }
    }

    /// Whether senders that can wait may add more.
    pub(crate) const fn has_room(&self) -> bool {
        self.cost < self.limit
    }

    /// Adds a frame. One from a sender that does not look at [`has_room`](Self::has_room) is
    /// dropped when there is twice as much as may be.
    pub(crate) fn push(&mut self, frame: Frame, now: Instant, pool: &mut FramePool) {
        if self.cost >= self.limit * 2 {
            self.dropped += 1;
            return pool.recycle(frame);
        }
        if self.shaper.is_ideal() {
            self.cost += frame.cost();
            self.ready.push_back(frame);
            return;
        }
        match self.shaper.pass(frame.ethernet().len(), now) {
            None => {
                self.dropped += 1;
                pool.recycle(frame);
            }
            Some(at) => {
                self.cost += frame.cost();
                self.held.push_back((at, frame));
            }
        }
    }

    /// Adds to what is ready the frames whose time has come; returns when the next one's comes.
    pub(crate) fn release(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, _)) = self.held.front() {
            if *at > now {
                return Some(*at);
            }
            if let Some((_, frame)) = self.held.pop_front() {
                self.ready.push_back(frame);
            }
        }
        None
    }

    /// Counts anew what is taken up, after frames were sent.
    pub(crate) fn sent(&mut self) {
        if self.ready.is_empty() && self.held.is_empty() {
            self.cost = 0;
        } else {
            let ready: usize = self.ready.iter().map(Frame::cost).sum();
            let held: usize = self.held.iter().map(|(_, frame)| frame.cost()).sum();
            self.cost = ready + held;
        }
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        self.ready.clear();
        self.held.clear();
        self.cost = 0;
    }
}

/// Frames from a guest that its link's conditions hold back.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) held: VecDeque<(Instant, Vec<u8>)>,
    pub(crate) shaper: Shaper,
    pub(crate) cost: usize,
}

impl Inbox {
    pub(crate) fn new(shaper: Shaper) -> Self {
        Self {
            held: VecDeque::new(),
            shaper,
            cost: 0,
        }
    }

    /// Keeps a frame until its time comes, or loses it.
    pub(crate) fn push(&mut self, with_header: &[u8], now: Instant) {
        if let Some(at) = self.shaper.pass(with_header.len(), now) {
            self.cost += with_header.len();
            self.held.push_back((at, with_header.to_vec()));
        }
    }

    /// The next frame whose time has come.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.held.front().filter(|(at, _)| *at <= now)?;
        let (_, frame) = self.held.pop_front()?;
        self.cost -= frame.len();
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_spreads_frames_over_time() {
        let conditions = LinkConditions::ideal();
        let mut shaper = Shaper::new(&conditions, Some(1_000_000), 1);
        let now = Instant::now();
        let mut last = now;
        for _ in 0..1000 {
            last = shaper.pass(1000, now).unwrap();
        }
        let took = last.duration_since(now);
        assert!((995..=1001).contains(&took.as_millis()), "{took:?}");
    }

    #[test]
    fn loss_is_about_what_was_asked_for() {
        let conditions = LinkConditions {
            loss_ppm: 100_000,
            ..LinkConditions::ideal()
        };
        let mut shaper = Shaper::new(&conditions, None, 0x1234_5678_9abc_def1);
        let lost = (0..100_000)
            .filter(|_| shaper.pass(100, Instant::now()).is_none())
            .count();
        assert!((9_000..11_000).contains(&lost), "{lost}");
    }
}
