//! Answers that may be given again (RFC 1035 section 7.4, RFC 2308).

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::message::{Answer, Query};
use crate::bytes::put;

const MAX_ENTRIES: usize = 4096;
const MAX_BYTES: usize = 4 << 20;
const MAX_TTL: u32 = 3600;

type Key = (String, u16, u16, u32);

#[derive(Debug)]
struct Entry {
    message: Vec<u8>,
    answer: Answer,
    since: Instant,
}

/// A bounded cache; the oldest entries leave first.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    order: VecDeque<Key>,
    bytes: usize,
}

fn key(query: &Query) -> Key {
    (
        query.name.clone(),
        query.record_type,
        query.class,
        query.flavor,
    )
}

impl Cache {
    /// The answer to a query, its times to live counted down.
    pub(crate) fn get(&self, query: &Query, now: Instant) -> Option<(Vec<u8>, Answer)> {
        let entry = self.entries.get(&key(query))?;
        let age = u32::try_from(now.duration_since(entry.since).as_secs()).unwrap_or(u32::MAX);
        let ttl = entry.answer.ttl.filter(|ttl| age < *ttl)?;
        let mut message = entry.message.clone();
        for at in &entry.answer.ttl_at {
            let place = message.get(*at..).and_then(|rest| rest.first_chunk::<4>());
            let left = place
                .map_or(0, |ttl| u32::from_be_bytes(*ttl))
                .saturating_sub(age);
            put(&mut message, *at, &left.to_be_bytes());
        }
        query.address(&mut message);
        let answer = Answer {
            ttl: Some(ttl - age),
            ..entry.answer.clone()
        };
        Some((message, answer))
    }

    /// Keeps an answer for as long as it says.
    pub(crate) fn put(&mut self, query: &Query, message: &[u8], answer: &Answer, now: Instant) {
        let Some(ttl) = answer.ttl.filter(|ttl| *ttl > 0 && !answer.truncated) else {
            return;
        };
        let key = key(query);
        let entry = Entry {
            message: message.to_vec(),
            answer: Answer {
                ttl: Some(ttl.min(MAX_TTL)),
                ..answer.clone()
            },
            since: now,
        };
        self.bytes += message.len();
        match self.entries.insert(key.clone(), entry) {
            Some(old) => self.bytes -= old.message.len(),
            None => self.order.push_back(key),
        }
        while self.entries.len() > MAX_ENTRIES || self.bytes > MAX_BYTES {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some(old) = self.entries.remove(&oldest) {
                self.bytes -= old.message.len();
            }
        }
    }

    /// Forgets everything, because the servers changed.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How long a guest may rely on an answer's addresses.
pub(crate) fn lifetime(answer: &Answer) -> Duration {
    Duration::from_secs(answer.ttl.unwrap_or(0).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::record;
    use crate::dns::message::tests::{aliased_answer, query};

    #[test]
    fn answers_age_and_end() {
        let query = Query::parse(&query("www.example.com", record::A)).unwrap();
        let message = aliased_answer(&query);
        let answer = Answer::parse(&message, &query).unwrap();
        let mut cache = Cache::default();
        let now = Instant::now();
        cache.put(&query, &message, &answer, now);
        let (aged, _) = cache.get(&query, now + Duration::from_secs(25)).unwrap();
        assert_eq!(Answer::parse(&aged, &query).unwrap().ttl, Some(35));
        assert_eq!(cache.get(&query, now + Duration::from_secs(60)), None);
    }

    #[test]
    fn cache_is_bounded() {
        let mut cache = Cache::default();
        for index in 0..MAX_ENTRIES * 2 {
            let query = Query::parse(&query(&format!("n{index}.example.com"), record::A)).unwrap();
            let message = aliased_answer(&query);
            let answer = Answer::parse(&message, &query).unwrap();
            cache.put(&query, &message, &answer, Instant::now());
        }
        assert!(cache.entries.len() <= MAX_ENTRIES && cache.order.len() <= MAX_ENTRIES);
        assert!(cache.bytes <= MAX_BYTES);
    }
}
