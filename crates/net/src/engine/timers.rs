//! Deadlines, earliest first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

/// What a deadline belongs to. One that was overtaken stays in the heap; who is woken looks
/// whether it is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deadline {
    Tcp(usize),
    Datagram(usize),
    Dns(usize),
    /// Frames that a guest's link holds.
    Link(usize),
    /// The next router advertisements.
    Advertise,
}

#[derive(Debug, Default)]
pub(crate) struct Timers(BinaryHeap<Reverse<(Instant, Deadline)>>);

impl Timers {
    pub(crate) fn add(&mut self, at: Instant, deadline: Deadline) {
        self.0.push(Reverse((at, deadline)));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }

    /// The next deadline that has passed.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<(Instant, Deadline)> {
        self.next().filter(|at| *at <= now)?;
        self.0.pop().map(|Reverse(entry)| entry)
    }
}
