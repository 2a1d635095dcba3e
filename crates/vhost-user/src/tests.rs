//! A front end drives devices without a machine.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use capsa_virtio::block::backend::RawDisk;
use capsa_virtio::block::{Block, BlockOptions};
use capsa_virtio::queue::F_EVENT_IDX;
use capsa_virtio::rng::{DEFAULT_LIMITS, Rng};
use capsa_virtio::testing::{Buffer, DriverQueue};
use capsa_virtio::{GuestMemory, GuestRam, VirtioDevice};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::*;

const MEMORY: usize = 64 << 20;
/// Where the front end pretends to have the guest's memory.
const USER: u64 = 0x7f00_0000_0000;

/// A front end with its guest's memory and rings, and the thread that serves its device.
struct Guest {
    front_end: Frontend,
    memory_file: File,
    memory: GuestMemory,
    queues: Vec<DriverQueue>,
    kicks: Vec<EventFd>,
    calls: Vec<EventFd>,
    features: u64,
    server: JoinHandle<Result<(), ServeError>>,
}

impl Guest {
    /// Connects to `device` and shares the memory, with `sizes` of the rings.
    fn new(device: impl VirtioDevice + 'static, sizes: &[u16]) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server =
            std::thread::spawn(move || serve(theirs, Box::new(device), "device", || Ok(())));
        let mut front_end = Frontend::from_stream(ours, sizes.len() as u64);
        let memory_file = sealed_memory();
        let offset = FileOffset::new(memory_file.try_clone().unwrap(), 0);
        let ram = GuestRam::from_ranges_with_files([(GuestAddress(0), MEMORY, Some(offset))]);
        let memory = GuestMemory::new(ram.unwrap());
        let queues = sizes.iter().enumerate();
        let queues = queues
            .map(|(index, &size)| DriverQueue::new(&memory, index as u16, size))
            .collect();
        front_end.set_owner().unwrap();
        let features = front_end.get_features().unwrap() & !F_EVENT_IDX;
        let protocol = front_end.get_protocol_features().unwrap();
        front_end.set_protocol_features(protocol).unwrap();
        front_end.set_features(features).unwrap();
        let eventfds = || sizes.iter().map(|_| EventFd::new(0).unwrap()).collect();
        Self {
            front_end,
            memory_file,
            memory,
            queues,
            kicks: eventfds(),
            calls: eventfds(),
            features,
            server,
        }
    }

    fn share_memory(&mut self) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY as u64,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.memory_file.as_raw_fd(),
        };
        self.front_end.set_mem_table(&[region]).unwrap();
    }

    /// Sets up and starts every ring from its place in `bases`.
    fn start(&mut self, bases: &[u16]) {
        for (index, &base) in bases.iter().enumerate() {
            let config = self.queues[index].config();
            let front_end = &mut self.front_end;
            front_end.set_vring_num(index, config.size).unwrap();
            front_end.set_vring_base(index, base).unwrap();
            let addresses = VringConfigData {
                queue_max_size: config.size,
                queue_size: config.size,
                flags: 0,
                desc_table_addr: USER + config.descriptors,
                used_ring_addr: USER + config.used,
                avail_ring_addr: USER + config.available,
                log_addr: None,
            };
            front_end.set_vring_addr(index, &addresses).unwrap();
            front_end.set_vring_kick(index, &self.kicks[index]).unwrap();
            front_end.set_vring_call(index, &self.calls[index]).unwrap();
        }
        for index in 0..bases.len() {
            self.front_end.set_vring_enable(index, true).unwrap();
        }
    }

    /// Stops every ring, as QEMU does for a pause; gives their places.
    fn stop(&mut self) -> Vec<u16> {
        let rings = 0..self.queues.len();
        for index in rings.clone() {
            self.front_end.set_vring_enable(index, false).unwrap();
        }
        rings
            .map(|index| self.front_end.get_vring_base(index).unwrap() as u16)
            .collect()
    }

    fn kick(&self, index: usize) {
        self.kicks[index].write(1).unwrap();
    }

    /// Waits for the device's signal.
    fn wait_for_call(&self, index: usize) {
        let epoll = Epoll::new().unwrap();
        let call = self.calls[index].as_raw_fd();
        let readable = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, call, readable).unwrap();
        let mut events = [EpollEvent::default()];
        assert_eq!(epoll.wait(60_000, &mut events).unwrap(), 1, "no signal");
        self.calls[index].read().unwrap();
    }

    /// Waits until the device has handed back `count` requests.
    fn wait_for_used(&self, count: u16) {
        while self.queues[0].used_index() < count {
            self.wait_for_call(0);
        }
    }

    /// Closes the connection, and gives how the device was served.
    fn leave(self) -> Result<(), ServeError> {
        drop(self.front_end);
        self.server.join().unwrap()
    }
}

fn sealed_memory() -> File {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("guest", flags).unwrap());
    file.set_len(MEMORY as u64).unwrap();
    fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    file
}

fn rng() -> Rng {
    Rng::new(DEFAULT_LIMITS)
}

#[test]
fn rng_fills_a_request_and_signals_its_call_descriptor() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    guest.start(&[0]);

    guest.queues[0].add(&[Buffer::Writable(64)]);
    guest.kick(0);
    guest.wait_for_used(1);

    let bytes = guest.queues[0].take_written().unwrap();
    assert_ne!(bytes, [0; 64]);
    assert!(guest.leave().is_ok());
}

#[test]
fn request_that_waits_before_the_ring_is_started_is_served() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    guest.queues[0].add(&[Buffer::Writable(8)]);

    guest.start(&[0]);
    guest.wait_for_call(0);

    assert_eq!(guest.queues[0].take_used().unwrap().1, 8);
}

#[test]
fn ring_longer_than_the_devices_own_is_served() {
    let mut guest = Guest::new(rng(), &[1024]);
    guest.share_memory();
    guest.start(&[0]);

    guest.queues[0].add(&[Buffer::Writable(8)]);
    guest.kick(0);
    guest.wait_for_used(1);

    assert_eq!(guest.queues[0].take_used().unwrap().1, 8);
}

#[test]
fn stopped_ring_is_served_no_more_and_goes_on_at_its_place() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    guest.start(&[0]);
    guest.queues[0].add(&[Buffer::Writable(8)]);
    guest.kick(0);
    guest.wait_for_used(1);

    let bases = guest.stop();
    guest.queues[0].add(&[Buffer::Writable(8)]);
    guest.kick(0);
    // Answered behind what a running ring would have done.
    guest.front_end.get_features().unwrap();
    let while_stopped = guest.queues[0].used_index();
    guest.start(&bases);
    guest.wait_for_used(2);

    assert_eq!(bases, [1]);
    assert_eq!(while_stopped, 1);
}

#[test]
fn ring_that_is_disabled_is_served_once_it_is_enabled() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    guest.start(&[0]);
    guest.front_end.set_vring_enable(0, false).unwrap();
    guest.front_end.get_features().unwrap();
    guest.queues[0].add(&[Buffer::Writable(8)]);
    guest.kick(0);
    let while_disabled = guest.queues[0].used_index();

    guest.front_end.set_vring_enable(0, true).unwrap();
    guest.wait_for_used(1);

    assert_eq!(while_disabled, 0);
}

#[test]
fn block_device_is_read_and_tells_its_configuration() {
    // Arrange
    let mut image = File::from(memfd_create("image", MemfdFlags::CLOEXEC).unwrap());
    image.write_all(&[7; 1 << 20]).unwrap();
    let image = Arc::new(RawDisk::new(image, false).unwrap());
    let (disk, _handle) = Block::new(image, BlockOptions::default()).unwrap();
    let mut guest = Guest::new(disk, &[128]);
    guest.share_memory();
    guest.start(&[0]);

    // Act: sector 1, by §5.2.6.
    let mut header = [0; 16];
    header[8] = 1;
    guest.queues[0].add(&[
        Buffer::Readable(&header),
        Buffer::Writable(512),
        Buffer::Writable(1),
    ]);
    guest.kick(0);
    guest.wait_for_used(1);
    let (offered, _) = guest.queues[0].take_used().unwrap();
    let [_, data, status] = offered.buffers[..] else {
        panic!("{:?}", offered.buffers)
    };
    let read = guest.queues[0].read(data.0, 512);
    let status = guest.queues[0].read(status.0, 1);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = guest.front_end.get_config(0, 8, flags, &[0; 8]).unwrap();

    // Assert
    assert_eq!(read, [7; 512]);
    assert_eq!(status, [0]);
    assert_eq!(config, 2048u64.to_le_bytes());
}

#[test]
fn ring_outside_of_guest_memory_is_refused_and_ends_the_connection_only() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    let addresses = VringConfigData {
        queue_max_size: 64,
        queue_size: 64,
        flags: 0,
        desc_table_addr: USER + MEMORY as u64,
        used_ring_addr: USER,
        avail_ring_addr: USER,
        log_addr: None,
    };

    let _sent = guest.front_end.set_vring_addr(0, &addresses);

    assert!(matches!(guest.leave(), Err(ServeError::Protocol(_))));
}

#[test]
fn ring_that_does_not_exist_is_refused() {
    let mut guest = Guest::new(rng(), &[64, 64]);
    guest.share_memory();

    let _sent = guest.front_end.set_vring_base(1, 0);

    assert!(matches!(guest.leave(), Err(ServeError::Protocol(_))));
}

#[test]
fn ring_of_a_bad_size_leaves_the_device_at_rest_and_the_connection_open() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    guest.start(&[0]);

    // The driver's mistake, not the front end's.
    guest.front_end.set_vring_num(0, 3).unwrap();
    guest.front_end.set_vring_enable(0, true).unwrap();
    guest.front_end.get_features().unwrap();
    guest.queues[0].add(&[Buffer::Writable(8)]);
    guest.kick(0);

    assert!(guest.front_end.get_features().is_ok());
    assert_eq!(guest.queues[0].used_index(), 0);
    assert!(guest.leave().is_ok());
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let guest = Guest::new(rng(), &[64]);

    let _sent = guest.front_end.set_features(guest.features | 1);

    assert!(matches!(guest.leave(), Err(ServeError::Protocol(_))));
}

#[test]
fn memory_that_can_shrink_is_refused() {
    let mut guest = Guest::new(rng(), &[64]);
    let unsealed = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&unsealed, MEMORY as u64).unwrap();
    guest.memory_file = unsealed.into();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: MEMORY as u64,
        userspace_addr: USER,
        mmap_offset: 0,
        mmap_handle: guest.memory_file.as_raw_fd(),
    };

    let _sent = guest.front_end.set_mem_table(&[region]);

    assert!(matches!(guest.leave(), Err(ServeError::Protocol(_))));
}

#[test]
fn device_of_a_reset_starts_afresh() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    guest.start(&[0]);
    guest.queues[0].add(&[Buffer::Writable(8)]);
    guest.kick(0);
    guest.wait_for_used(1);

    guest.front_end.reset_device().unwrap();
    guest.front_end.get_features().unwrap();
    let rings = guest.queues[0].config();
    guest.queues[0] = DriverQueue::new(&guest.memory, 0, 64);
    guest.queues[0].write(rings.available, &[0; 4]);
    guest.queues[0].write(rings.used, &[0; 4]);
    guest.start(&[0]);
    guest.queues[0].add(&[Buffer::Writable(16)]);
    guest.kick(0);
    guest.wait_for_used(1);

    assert_eq!(guest.queues[0].take_used().unwrap().1, 16);
}

#[test]
fn bytes_that_are_no_message_end_the_connection_only() {
    for bytes in [
        &[0xff; 64][..],
        &[0; 12],
        b"GET / HTTP/1.1\r\n\r\n",
        // SET_VRING_NUM whose length says more than a message has.
        &[8, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        // SET_MEM_TABLE of eight regions, without them.
        &[5, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(bytes).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();

        let served = serve(theirs, Box::new(rng()), "device", || Ok(()));

        assert!(served.is_err(), "{bytes:?}");
    }
}

#[test]
fn front_end_that_goes_in_the_middle_of_its_work_is_the_end() {
    let mut guest = Guest::new(rng(), &[64]);
    guest.share_memory();
    guest.start(&[0]);
    for _ in 0..32 {
        guest.queues[0].add(&[Buffer::Writable(4096)]);
    }
    guest.kick(0);

    assert!(guest.leave().is_ok());
}

#[test]
fn hostile_front_ends_of_the_fuzzers_seeds_end_with_their_connection() {
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/vhost_user");
    let mut count = 0;
    for entry in std::fs::read_dir(seeds).unwrap() {
        fuzz::messages(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0, "there are no seeds");
}
