//! The bounded log of a console and its readers' positions.
//!
//! Positions are counted in bytes from the first byte that the guest ever wrote.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::ReadBuf;

use super::pattern::{EndCheck, Matcher};

/// The most that a search looks at before it lets other tasks (and the drain) go on.
const SCAN_PIECE: usize = 64 * 1024;

/// Where a new reader starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadFrom {
    /// With the oldest byte that is still kept.
    #[default]
    Start,
    /// With the next byte that the guest writes.
    Now,
}

/// Names one reader of a [`Log`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ReaderId(u64);

/// A reader's position fell off the log; so many bytes were lost to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lagged(pub(super) u64);

/// How a search ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Searched {
    /// Everything from the reader's position to the end of the match, now consumed.
    Found(Vec<u8>),
    /// Part of what was to be searched is gone.
    Lagged(Lagged),
    /// The reader is lossless and has as much before it as the log can keep.
    Full,
    /// No more output will come.
    Ended,
}

/// A search that is going on.
pub(super) struct Search {
    matcher: Matcher,
    /// The next byte to look at; `None` before the first.
    next: Option<u64>,
    /// Up to where it is known that the text so far does not end in a match.
    no_match_at: Option<u64>,
}

impl Search {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self {
            matcher,
            next: None,
            no_match_at: None,
        }
    }
}

pub(super) struct Log {
    capacity: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: VecDeque<u8>,
    /// The position behind the last byte.
    end: u64,
    closed: bool,
    next_reader: u64,
    readers: BTreeMap<ReaderId, Reader>,
    /// Waits for a lossless reader.
    drain: Option<Waker>,
}

struct Reader {
    position: u64,
    lossless: bool,
    waker: Option<Waker>,
}

impl State {
    fn start(&self) -> u64 {
        self.end - self.kept.len() as u64
    }

    /// The position before which nothing needs to be kept for a lossless reader.
    fn lossless_position(&self) -> Option<u64> {
        self.readers
            .values()
            .filter(|reader| reader.lossless)
            .map(|reader| reader.position)
            .min()
    }

    /// The bytes between two positions that are both kept.
    fn copy(&self, from: u64, to: u64) -> Vec<u8> {
        let start = self.start();
        self.kept
            .range((from - start) as usize..(to - start) as usize)
            .copied()
            .collect()
    }

    fn take_wakers(&mut self) -> Vec<Waker> {
        self.readers
            .values_mut()
            .filter_map(|reader| reader.waker.take())
            .collect()
    }

    /// Moves a reader that has fallen behind to what is kept, and says what it missed.
    fn catch_up(&mut self, id: ReaderId) -> Result<u64, Lagged> {
        let start = self.start();
        let Some(reader) = self.readers.get_mut(&id) else {
            return Ok(start);
        };
        if reader.position >= start {
            return Ok(reader.position);
        }
        let dropped = start - reader.position;
        reader.position = start;
        Err(Lagged(dropped))
    }

    /// Moves a reader on; returns who then waits for it.
    fn advance(&mut self, id: ReaderId, position: u64) -> Option<Waker> {
        let reader = self.readers.get_mut(&id)?;
        reader.position = position;
        if reader.lossless {
            self.drain.take()
        } else {
            None
        }
    }

    fn wait(&mut self, id: ReaderId, cx: &Context<'_>) {
        if let Some(reader) = self.readers.get_mut(&id) {
            reader.waker = Some(cx.waker().clone());
        }
    }
}

impl Log {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add_reader(&self, from: ReadFrom, lossless: bool) -> ReaderId {
        let mut state = self.state();
        let id = ReaderId(state.next_reader);
        state.next_reader += 1;
        let position = match from {
            ReadFrom::Start => state.start(),
            ReadFrom::Now => state.end,
        };
        state.readers.insert(
            id,
            Reader {
                position,
                lossless,
                waker: None,
            },
        );
        id
    }

    pub(super) fn remove_reader(&self, id: ReaderId) {
        let drain = {
            let mut state = self.state();
            state.readers.remove(&id);
            state.drain.take()
        };
        if let Some(drain) = drain {
            drain.wake();
        }
    }

    /// How many bytes may be appended without loss to a lossless reader; never 0.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<usize> {
        let mut state = self.state();
        let Some(position) = state.lossless_position() else {
            return Poll::Ready(usize::MAX);
        };
        match self
            .capacity
            .saturating_sub((state.end - position) as usize)
        {
            0 => {
                state.drain = Some(cx.waker().clone());
                Poll::Pending
            }
            room => Poll::Ready(room),
        }
    }

    /// Adds output and drops the oldest beyond the capacity. What a lossless reader has still to
    /// read stays: [`poll_room`](Self::poll_room) bounds how much that can be.
    pub(super) fn append(&self, bytes: &[u8]) {
        let wakers = {
            let mut state = self.state();
            state.kept.extend(bytes);
            state.end += bytes.len() as u64;
            let start = state.start();
            let unread = state
                .lossless_position()
                .map_or(usize::MAX, |position| (position - start) as usize);
            let surplus = state.kept.len().saturating_sub(self.capacity).min(unread);
            state.kept.drain(..surplus);
            state.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// No more output will come.
    pub(super) fn close(&self) {
        let wakers = {
            let mut state = self.state();
            state.closed = true;
            state.take_wakers()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Reads what there is; an unchanged `buffer` means that the output has ended.
    pub(super) fn poll_read(
        &self,
        id: ReaderId,
        cx: &Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), Lagged>> {
        let drain = {
            let mut state = self.state();
            let position = state.catch_up(id)?;
            if position == state.end {
                if state.closed {
                    return Poll::Ready(Ok(()));
                }
                state.wait(id, cx);
                return Poll::Pending;
            }
            let skip = (position - state.start()) as usize;
            let before = buffer.filled().len();
            let (first, second) = state.kept.as_slices();
            for part in [
                first.get(skip..).unwrap_or_default(),
                second
                    .get(skip.saturating_sub(first.len())..)
                    .unwrap_or_default(),
            ] {
                let length = part.len().min(buffer.remaining());
                buffer.put_slice(part.get(..length).unwrap_or_default());
            }
            let read = buffer.filled().len() - before;
            state.advance(id, position + read as u64)
        };
        if let Some(drain) = drain {
            drain.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// Searches from the reader's position on; consumes only what is found.
    pub(super) fn poll_search(
        &self,
        id: ReaderId,
        search: &mut Search,
        cx: &Context<'_>,
    ) -> Poll<Searched> {
        let mut guard = self.state();
        let state = &mut *guard;
        let position = match state.catch_up(id) {
            Ok(position) => position,
            Err(lagged) => return Poll::Ready(Searched::Lagged(lagged)),
        };
        let next = search.next.unwrap_or(position);
        let skip = (next - state.start()) as usize;
        let mut scanned = 0;
        let mut end = None;
        let (first, second) = state.kept.as_slices();
        for part in [
            first.get(skip..).unwrap_or_default(),
            second
                .get(skip.saturating_sub(first.len())..)
                .unwrap_or_default(),
        ] {
            let part = part
                .get(..part.len().min(SCAN_PIECE - scanned))
                .unwrap_or_default();
            if let Some(offset) = search.matcher.feed(part) {
                end = Some(next + (scanned + offset) as u64);
                break;
            }
            scanned += part.len();
        }
        let next = next + scanned as u64;
        search.next = Some(next);
        if end.is_none() && next < state.end {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if end.is_none() && search.no_match_at != Some(next) {
            match search.matcher.ends_here() {
                EndCheck::Match => end = Some(next),
                EndCheck::NoMatch => {}
                EndCheck::NoMatchAndRestart => {
                    search.next = Some(position);
                    search.no_match_at = Some(next);
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
            search.no_match_at = Some(next);
        }
        if let Some(end) = end {
            let found = state.copy(position, end);
            let drain = state.advance(id, end);
            drop(guard);
            if let Some(drain) = drain {
                drain.wake();
            }
            return Poll::Ready(Searched::Found(found));
        }
        if state.closed {
            return Poll::Ready(Searched::Ended);
        }
        let lossless = state.readers.get(&id).is_some_and(|reader| reader.lossless);
        if lossless && state.end - position >= self.capacity as u64 {
            return Poll::Ready(Searched::Full);
        }
        state.wait(id, cx);
        Poll::Pending
    }

    /// The last bytes, at most `count`.
    pub(super) fn tail(&self, count: usize) -> Vec<u8> {
        let state = self.state();
        let skip = state.kept.len().saturating_sub(count);
        state.kept.range(skip..).copied().collect()
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }
}
