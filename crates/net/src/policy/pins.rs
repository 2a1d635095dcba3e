//! Which names each address was given out under: what domain rules hold on to.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// The most addresses remembered for one guest; a guest that looks up more loses the oldest.
const MAX_ADDRESSES: usize = 8192;
/// The most names of one address.
const MAX_NAMES: usize = 16;
/// A program may connect a while after its lookup, however short the answer's lifetime was.
const MIN_LIFETIME: Duration = Duration::from_secs(300);
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The answers that one guest was given.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    by_address: HashMap<IpAddr, Vec<(String, Instant)>>,
}

impl Pins {
    /// Remembers that `address` was given out in an answer about `name`.
    pub(crate) fn pin(&mut self, address: IpAddr, name: &str, ttl: Duration, now: Instant) {
        let until = now + ttl.clamp(MIN_LIFETIME, MAX_LIFETIME);
        if self.by_address.len() >= MAX_ADDRESSES && !self.by_address.contains_key(&address) {
            self.make_room(now);
        }
        let names = self.by_address.entry(address.to_canonical()).or_default();
        names.retain(|(_, until)| *until > now);
        if let Some(known) = names.iter_mut().find(|(known, _)| known == name) {
            known.1 = until;
        } else {
            if names.len() >= MAX_NAMES {
                names.remove(0);
            }
            names.push((name.to_owned(), until));
        }
    }

    fn make_room(&mut self, now: Instant) {
        self.by_address.retain(|_, names| {
            names.retain(|(_, until)| *until > now);
            !names.is_empty()
        });
        if self.by_address.len() >= MAX_ADDRESSES {
            let last = |names: &Vec<(String, Instant)>| names.iter().map(|(_, until)| *until).max();
            let oldest = self
                .by_address
                .iter()
                .min_by_key(|(_, names)| last(names))
                .map(|(address, _)| *address);
            if let Some(oldest) = oldest {
                self.by_address.remove(&oldest);
            }
        }
    }

    /// The names under which `address` was given out and still counts.
    pub(crate) fn names(&self, address: IpAddr, now: Instant) -> Vec<String> {
        self.by_address
            .get(&address.to_canonical())
            .into_iter()
            .flatten()
            .filter(|(_, until)| *until > now)
            .map(|(name, _)| name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_end_and_stay_bounded() {
        let mut pins = Pins::default();
        let now = Instant::now();
        let address = |n: u32| IpAddr::V4(n.into());
        pins.pin(address(1), "a.example", Duration::from_secs(1), now);
        assert_eq!(pins.names(address(1), now), ["a.example"]);
        assert!(
            pins.names(address(1), now + Duration::from_secs(301))
                .is_empty()
        );
        for n in 0..10_000 {
            pins.pin(address(n), "b.example", Duration::from_secs(9), now);
        }
        assert!(pins.by_address.len() <= MAX_ADDRESSES);
        assert_eq!(pins.names(address(9_999), now), ["b.example"]);
    }
}
