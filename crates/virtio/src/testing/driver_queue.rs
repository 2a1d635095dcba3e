use std::collections::HashMap;

use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

use crate::{GuestMemory, QueueConfig};

/// Descriptor flags of §2.7.5.
pub mod desc {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// Guest memory that one queue of the test driver takes.
const AREA: u64 = 8 << 20;
const RINGS: u64 = 0x20000;

/// A buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub enum Buffer<'a> {
    /// The device reads these bytes.
    Readable(&'a [u8]),
    /// The device may write that many bytes.
    Writable(u32),
}

/// A chain on its way: its head, and where its buffers are.
#[derive(Debug, Clone)]
pub struct Offered {
    /// The number under which it comes back.
    pub head: u16,
    /// Guest address and length of each buffer.
    pub buffers: Vec<(u64, u32)>,
}

/// A driver that lays out one split queue in guest memory, honestly or not.
pub struct DriverQueue {
    memory: GuestMemory,
    size: u16,
    base: u64,
    data: u64,
    /// Buffers of the chain that is being made.
    placing: Vec<(u64, u32)>,
    free: Vec<u16>,
    taken: HashMap<u16, (Vec<u16>, Offered)>,
    available: u16,
    used: u16,
}

impl DriverQueue {
    /// A queue in the `index`th 8 MiB of guest memory.
    pub fn new(memory: &GuestMemory, index: u16, size: u16) -> Self {
        let base = u64::from(index) * AREA;
        Self {
            memory: memory.clone(),
            size,
            base,
            data: base + RINGS,
            placing: Vec::new(),
            free: (0..size).rev().collect(),
            taken: HashMap::new(),
            available: 0,
            used: 0,
        }
    }

    /// What a driver tells the transport.
    pub fn config(&self) -> QueueConfig {
        QueueConfig {
            size: self.size,
            ready: true,
            descriptors: self.base,
            available: self.base + 0x8000,
            used: self.base + 0x10000,
        }
    }

    /// Offers a chain of `buffers`.
    pub fn add(&mut self, buffers: &[Buffer<'_>]) -> Offered {
        let placed: Vec<_> = buffers.iter().map(|buffer| self.place(buffer)).collect();
        let indices: Vec<u16> = placed
            .iter()
            .map(|_| self.free.pop().expect("a free descriptor"))
            .collect();
        for (at, &(address, len, flags)) in placed.iter().enumerate() {
            let next = indices.get(at + 1).copied();
            let flags = flags | if next.is_some() { desc::NEXT } else { 0 };
            self.set_descriptor(indices[at], address, len, flags, next.unwrap_or(0));
        }
        self.offer_known(indices, placed)
    }

    /// Offers a chain of `buffers` through an indirect table.
    pub fn add_indirect(&mut self, buffers: &[Buffer<'_>]) -> Offered {
        let placed: Vec<_> = buffers.iter().map(|buffer| self.place(buffer)).collect();
        let table = self.allocate(16 * placed.len() as u64);
        for (at, &(address, len, flags)) in placed.iter().enumerate() {
            let last = at + 1 == placed.len();
            let flags = flags | if last { 0 } else { desc::NEXT };
            self.write_descriptor(table + 16 * at as u64, address, len, flags, at as u16 + 1);
        }
        let index = self.free.pop().expect("a free descriptor");
        self.set_descriptor(index, table, 16 * placed.len() as u32, desc::INDIRECT, 0);
        self.offer_known(vec![index], placed)
    }

    /// Takes the next used chain: what was offered, and the bytes that the device says it wrote.
    pub fn take_used(&mut self) -> Option<(Offered, u32)> {
        let used = self.config().used;
        if self.load(used + 2) == self.used {
            return None;
        }
        let slot = used + 4 + 8 * u64::from(self.used % self.size);
        let head = self.load(slot);
        let len = u32::from(self.load(slot + 4)) | u32::from(self.load(slot + 6)) << 16;
        self.used = self.used.wrapping_add(1);
        let (indices, offered) = self.taken.remove(&head).expect("a chain that was offered");
        self.free.extend(indices);
        Some((offered, len))
    }

    /// Takes the next used chain and returns the bytes that the device wrote into it.
    pub fn take_written(&mut self) -> Option<Vec<u8>> {
        let (offered, len) = self.take_used()?;
        let mut bytes = Vec::new();
        for &(address, capacity) in &offered.buffers {
            // Chains of a reply have the writable buffers last; readable ones are told apart by the caller's layout.
            let left = len as usize - bytes.len();
            bytes.extend(self.read(address, left.min(capacity as usize)));
        }
        Some(bytes)
    }

    /// Writes entry `index` of the descriptor table.
    pub fn set_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.write_descriptor(self.base + 16 * u64::from(index), address, len, flags, next);
    }

    /// Writes a descriptor anywhere.
    pub fn write_descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&len.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.write(at, &raw);
    }

    /// Puts `head` into the available ring, whatever it is.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.size);
        self.write(self.config().available + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available_index(self.available.wrapping_add(1));
    }

    /// Sets the available ring's index, whatever it is.
    pub fn set_available_index(&mut self, index: u16) {
        self.available = index;
        self.write(self.config().available + 2, &index.to_le_bytes());
    }

    /// Sets the available ring's flags (1: no interrupts).
    pub fn set_available_flags(&self, flags: u16) {
        self.write(self.config().available, &flags.to_le_bytes());
    }

    /// Asks for a signal once the used index has passed `index` (`EVENT_IDX`).
    pub fn set_used_event(&self, index: u16) {
        let offset = 4 + 2 * u64::from(self.size);
        self.write(self.config().available + offset, &index.to_le_bytes());
    }

    /// The available index at which the device wants a kick (`EVENT_IDX`).
    pub fn available_event(&self) -> u16 {
        self.load(self.config().used + 4 + 8 * u64::from(self.size))
    }

    /// The used ring's flags (1: no kicks).
    pub fn used_flags(&self) -> u16 {
        self.load(self.config().used)
    }

    /// The used ring's index.
    pub fn used_index(&self) -> u16 {
        self.load(self.config().used + 2)
    }

    /// Chains that can still be offered, of one descriptor each.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Reads guest memory.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read_slice(&mut bytes, GuestAddress(address))
            .expect("in memory");
        bytes
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory
            .memory()
            .write_slice(bytes, GuestAddress(address))
            .expect("in memory");
    }

    /// Takes `len` bytes of the queue's area for a buffer, round and round, past those that are on their way.
    pub fn allocate(&mut self, len: u64) -> u64 {
        let (start, end) = (self.base + RINGS, self.base + AREA);
        let (mut at, mut wrapped) = (self.data, false);
        loop {
            if at + len > end {
                assert!(!wrapped, "the test driver's buffers are full");
                (at, wrapped) = (start, true);
            }
            let offered = self
                .taken
                .values()
                .flat_map(|(_, offered)| &offered.buffers);
            let mut others = offered
                .chain(&self.placing)
                .map(|&(from, len)| (from, u64::from(len)));
            match others.find(|&(from, other)| from < at + len && at < from + other) {
                Some((from, other)) => at = (from + other).next_multiple_of(16),
                None => break,
            }
        }
        self.data = (at + len).next_multiple_of(16);
        at
    }

    fn place(&mut self, buffer: &Buffer<'_>) -> (u64, u32, u16) {
        let (at, len, flags) = match *buffer {
            Buffer::Readable(bytes) => {
                let at = self.allocate(bytes.len() as u64);
                self.write(at, bytes);
                (at, bytes.len() as u32, 0)
            }
            Buffer::Writable(len) => (self.allocate(u64::from(len)), len, desc::WRITE),
        };
        self.placing.push((at, len));
        (at, len, flags)
    }

    fn offer_known(&mut self, indices: Vec<u16>, placed: Vec<(u64, u32, u16)>) -> Offered {
        let head = indices[0];
        let buffers = placed
            .iter()
            .map(|&(address, len, _)| (address, len))
            .collect();
        let offered = Offered { head, buffers };
        self.placing.clear();
        self.taken.insert(head, (indices, offered.clone()));
        self.offer(head);
        offered
    }

    fn load(&self, address: u64) -> u16 {
        self.memory
            .memory()
            .read_obj(GuestAddress(address))
            .expect("in memory")
    }
}
