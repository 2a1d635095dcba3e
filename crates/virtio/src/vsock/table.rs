//! All connections, by number and by ports.

use std::collections::{HashMap, VecDeque};

use super::config::{ALL_BUFFERS, BUFFER, FIRST_EPHEMERAL, MAX_CONNECTIONS, MIN_BUFFER};
use super::connection::{Connection, Key, Phase};

#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Option<Connection>>,
    free: Vec<u32>,
    by_key: HashMap<Key, u32>,
    /// Those with wishes, each once, in the order in which they get their turn.
    pub(super) listed: VecDeque<u32>,
    /// Buffer space promised to guests.
    promised: u64,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn get(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn find(&self, key: Key) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    /// The number that the next connection gets, unless there are too many.
    pub(super) fn reserve(&mut self) -> Option<u32> {
        if self.len() >= MAX_CONNECTIONS {
            return None;
        }
        if let Some(&slot) = self.free.last() {
            return Some(slot);
        }
        let slot = self.slots.len() as u32;
        self.slots.push(None);
        self.free.push(slot);
        Some(slot)
    }

    /// Buffer space for the next connection.
    pub(super) fn next_buffer(&self) -> u32 {
        let left = ALL_BUFFERS.saturating_sub(self.promised) / 8;
        left.clamp(u64::from(MIN_BUFFER), u64::from(BUFFER)) as u32
    }

    /// Puts a connection where [`reserve`](Self::reserve) said.
    pub(super) fn insert(&mut self, slot: u32, connection: Connection) {
        if self.free.last() == Some(&slot) {
            self.free.pop();
        }
        self.promised += u64::from(connection.buf_alloc);
        self.by_key.insert(connection.key, slot);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(connection);
        }
    }

    /// Frees a connection's ports, but lets it go on.
    pub(super) fn forget_key(&mut self, slot: u32) {
        if let Some(key) = self.get(slot).map(|connection| connection.key)
            && self.by_key.get(&key) == Some(&slot)
        {
            self.by_key.remove(&key);
        }
    }

    /// The requests that the guest has not answered.
    pub(super) fn connecting(&self) -> impl Iterator<Item = u64> {
        self.slots
            .iter()
            .flatten()
            .filter_map(|connection| match connection.phase {
                Phase::Connecting(id) => Some(id),
                Phase::Established => None,
            })
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Connection> {
        let connection = self.slots.get_mut(slot as usize)?.take()?;
        if self.by_key.get(&connection.key) == Some(&slot) {
            self.by_key.remove(&connection.key);
        }
        self.promised -= u64::from(connection.buf_alloc);
        self.free.push(slot);
        Some(connection)
    }

    /// Puts a connection with wishes on the list.
    pub(super) fn list(&mut self, slot: u32) {
        if let Some(connection) = self.get(slot)
            && !connection.listed
            && connection.has_wishes()
        {
            connection.listed = true;
            self.listed.push_back(slot);
        }
    }

    /// Takes the next connection with wishes off the list.
    pub(super) fn next_listed(&mut self) -> Option<u32> {
        loop {
            let slot = self.listed.pop_front()?;
            if let Some(connection) = self.get(slot)
                && connection.listed
            {
                connection.listed = false;
                return Some(slot);
            }
        }
    }

    /// A host port for a connection to `guest_port`, from `next` on. There are more ports than connections.
    pub(super) fn free_port(&self, next: &mut u32, guest_port: u32) -> u32 {
        loop {
            let host_port = *next;
            *next = next
                .checked_add(1)
                .filter(|&port| port != u32::MAX)
                .unwrap_or(FIRST_EPHEMERAL);
            if self
                .find(Key {
                    host_port,
                    guest_port,
                })
                .is_none()
            {
                return host_port;
            }
        }
    }
}
