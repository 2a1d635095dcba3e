use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::registers::{self as reg, status};
use super::*;
use crate::queue::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use crate::testing::{Buffer, CountingLine, DriverQueue, guest_memory};
use crate::*;

/// Hands every chain back, and remembers what happened to it.
struct Echo {
    seen: Arc<Mutex<Vec<String>>>,
    active: Option<Activation>,
    config: [u8; 4],
}

impl Echo {
    fn see(&self, what: &str) {
        self.seen.lock().unwrap().push(what.to_owned());
    }
}

impl VirtioDevice for Echo {
    fn device_type(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        0b101
    }
    fn queue_max_sizes(&self) -> &[u16] {
        &[16, 8]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let from = self.config.iter().skip(offset.min(4) as usize);
        data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let to = self.config.iter_mut().skip(offset.min(4) as usize);
        data.iter().zip(to).for_each(|(from, to)| *to = *from);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.see(&format!("activate {:#x}", activation.features));
        self.active = Some(activation);
        Ok(())
    }
    fn reset(&mut self) {
        if self.active.take().is_some() {
            self.see("reset");
        }
    }
    fn process_queue(&mut self, index: u16) -> Result<Progress, DeviceError> {
        use vm_memory::GuestAddressSpace;
        let active = self.active.as_mut().unwrap();
        let ram = active.memory.memory();
        let queue = &mut active.queues[usize::from(index)];
        let Some(chain) = queue.pop(&ram)? else {
            return Ok(Progress::Done);
        };
        queue.push(&ram, chain.head(), 0)?;
        queue.notify(&ram, &*active.interrupt)?;
        Ok(Progress::More)
    }
    fn pause(&mut self) -> Result<(), DeviceError> {
        self.see("pause");
        Ok(())
    }
    fn resume(&mut self) {
        self.see("resume");
    }
    fn queue_states(&self) -> Vec<QueueState> {
        self.active
            .iter()
            .flat_map(|active| &active.queues)
            .map(Virtqueue::state)
            .collect()
    }
    fn save(&self) -> Result<DeviceState, StateError> {
        DeviceState::encode(42, 1, &self.config)
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        self.config = state.decode(42, 1)?;
        Ok(())
    }
}

struct Board {
    reactor: Reactor,
    transport: MmioTransport,
    line: Arc<CountingLine>,
    memory: GuestMemory,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Board {
    fn new() -> Self {
        Self::with_memory(guest_memory(16))
    }

    fn with_memory(memory: GuestMemory) -> Self {
        let reactor = Reactor::new().unwrap();
        let seen = Arc::default();
        let echo = Echo {
            seen: Arc::clone(&seen),
            active: None,
            config: *b"abcd",
        };
        let mount = reactor.handle().add(Box::new(echo)).unwrap();
        let line = Arc::new(CountingLine::default());
        let transport = MmioTransport::new(mount, memory.clone(), line.clone());
        Self {
            reactor,
            transport,
            line,
            memory,
            seen,
        }
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn negotiate(&self, features: u64) {
        self.set(reg::STATUS, status::ACKNOWLEDGE);
        self.set(reg::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.set(reg::DRIVER_FEATURES_SEL, 0);
        self.set(reg::DRIVER_FEATURES, features as u32);
        self.set(reg::DRIVER_FEATURES_SEL, 1);
        self.set(reg::DRIVER_FEATURES, (features >> 32) as u32);
        self.set(
            reg::STATUS,
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK,
        );
    }

    fn set_up_queue(&self, index: u16, size: u16) -> DriverQueue {
        let driver = DriverQueue::new(&self.memory, index, size);
        let config = driver.config();
        self.set(reg::QUEUE_SEL, u32::from(index));
        self.set(reg::QUEUE_NUM, u32::from(size));
        for (low, high, address) in [
            (
                reg::QUEUE_DESC_LOW,
                reg::QUEUE_DESC_HIGH,
                config.descriptors,
            ),
            (
                reg::QUEUE_DRIVER_LOW,
                reg::QUEUE_DRIVER_HIGH,
                config.available,
            ),
            (reg::QUEUE_DEVICE_LOW, reg::QUEUE_DEVICE_HIGH, config.used),
        ] {
            self.set(low, address as u32);
            self.set(high, (address >> 32) as u32);
        }
        self.set(reg::QUEUE_READY, 1);
        driver
    }

    fn start(&self) {
        self.set(reg::STATUS, self.get(reg::STATUS) | status::DRIVER_OK);
    }

    fn started() -> (Self, DriverQueue) {
        let board = Self::new();
        board.negotiate(F_VERSION_1 | F_EVENT_IDX);
        let driver = board.set_up_queue(0, 16);
        board.start();
        (board, driver)
    }

    fn settle(&mut self) {
        while self.reactor.turn(Some(Duration::ZERO)).unwrap() {}
    }

    fn needs_reset(&self) -> bool {
        self.get(reg::STATUS) & status::DEVICE_NEEDS_RESET != 0
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

#[test]
fn identification_registers_tell_the_device() {
    let board = Board::new();
    assert_eq!(board.get(reg::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(board.get(reg::VERSION), 2);
    assert_eq!(board.get(reg::DEVICE_ID), 42);
}

#[test]
fn features_are_offered_in_halves() {
    let board = Board::new();
    assert_eq!(
        board.get(reg::DEVICE_FEATURES),
        (0b101 | F_EVENT_IDX | F_INDIRECT_DESC) as u32
    );
    board.set(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(board.get(reg::DEVICE_FEATURES), 1);
    board.set(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(board.get(reg::DEVICE_FEATURES), 0);
}

#[test]
fn features_not_offered_leave_features_ok_clear() {
    let board = Board::new();
    board.negotiate(F_VERSION_1 | 0b10);
    assert_eq!(board.get(reg::STATUS), status::ACKNOWLEDGE | status::DRIVER);
}

#[test]
fn features_without_version_1_leave_features_ok_clear() {
    let board = Board::new();
    board.negotiate(0b1);
    assert_eq!(board.get(reg::STATUS) & status::FEATURES_OK, 0);
}

#[test]
fn features_after_features_ok_are_ignored() {
    let (board, _driver) = Board::started();
    board.set(reg::DRIVER_FEATURES_SEL, 0);
    board.set(reg::DRIVER_FEATURES, 0xffff_ffff);
    assert_eq!(
        board.transport.save().unwrap_err().to_string(),
        StateError::Running.to_string()
    );
    board.transport.mount().pause().unwrap();
    assert_eq!(
        board.transport.save().unwrap().driver_features,
        F_VERSION_1 | F_EVENT_IDX
    );
}

#[test]
fn status_bits_are_not_cleared_by_writes() {
    let (board, _driver) = Board::started();
    board.set(reg::STATUS, status::ACKNOWLEDGE);
    assert_eq!(board.get(reg::STATUS), 15);
}

#[test]
fn driver_ok_without_features_ok_is_ignored() {
    let board = Board::new();
    board.set(
        reg::STATUS,
        status::ACKNOWLEDGE | status::DRIVER | status::DRIVER_OK,
    );
    assert_eq!(board.get(reg::STATUS), status::ACKNOWLEDGE | status::DRIVER);
    assert!(board.seen().is_empty());
}

#[test]
fn driver_ok_activates_and_zero_resets() {
    let (board, _driver) = Board::started();
    assert!(board.transport.is_running());
    board.set(reg::STATUS, 0);
    assert_eq!(
        board.seen(),
        [
            format!("activate {:#x}", F_VERSION_1 | F_EVENT_IDX),
            "reset".into()
        ]
    );
    assert_eq!(board.get(reg::STATUS), 0);
    assert_eq!(board.get(reg::QUEUE_READY), 0);
    assert!(!board.transport.is_running());
}

#[test]
fn queue_max_is_told_and_zero_beyond() {
    let board = Board::new();
    board.set(reg::QUEUE_SEL, 1);
    assert_eq!(board.get(reg::QUEUE_NUM_MAX), 8);
    board.set(reg::QUEUE_SEL, 2);
    assert_eq!(board.get(reg::QUEUE_NUM_MAX), 0);
    board.set(reg::QUEUE_SEL, u32::MAX);
    assert_eq!(board.get(reg::QUEUE_NUM_MAX), 0);
    board.set(reg::QUEUE_READY, 1);
    assert_eq!(board.get(reg::QUEUE_READY), 0);
}

#[test]
fn queue_too_large_needs_reset() {
    let board = Board::new();
    board.negotiate(F_VERSION_1);
    board.set_up_queue(1, 16);
    assert_eq!(board.get(reg::QUEUE_READY), 0);
    assert!(board.needs_reset());
    assert_eq!(board.line.edges(), 1);
    assert_eq!(board.get(reg::INTERRUPT_STATUS), 2);
}

#[test]
fn queue_size_beyond_sixteen_bits_is_not_cut_to_fit() {
    let board = Board::new();
    board.negotiate(F_VERSION_1);
    board.set(reg::QUEUE_NUM, 0x1_0010);
    board.set(reg::QUEUE_READY, 1);
    assert!(board.needs_reset());
}

#[test]
fn queue_outside_memory_needs_reset_until_reset() {
    let board = Board::new();
    board.negotiate(F_VERSION_1);
    board.set(reg::QUEUE_NUM, 16);
    board.set(reg::QUEUE_DESC_HIGH, 1);
    board.set(reg::QUEUE_READY, 1);
    assert!(board.needs_reset());
    board.set(reg::STATUS, 0);
    assert_eq!(board.get(reg::STATUS), 0);
    assert_eq!(board.get(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn queue_before_features_ok_is_not_set_up() {
    let board = Board::new();
    board.set_up_queue(0, 16);
    assert_eq!(board.get(reg::QUEUE_READY), 0);
    assert!(!board.needs_reset());
}

#[test]
fn kick_by_register_serves_the_queue_and_raises_the_line() {
    let (mut board, mut driver) = Board::started();
    driver.add(&[Buffer::Writable(4)]);
    board.set(reg::QUEUE_NOTIFY, 0);
    board.settle();
    assert!(driver.take_used().is_some());
    assert_eq!(board.line.edges(), 1);
    assert_eq!(board.get(reg::INTERRUPT_STATUS), 1);
    board.set(reg::INTERRUPT_ACK, 1);
    assert_eq!(board.get(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn kick_by_descriptor_serves_the_queue() {
    let (mut board, mut driver) = Board::started();
    board.settle();
    driver.add(&[Buffer::Writable(4)]);
    driver.add(&[Buffer::Writable(4)]);
    let fd = board.transport.mount().kick_fd(0).unwrap();
    rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
    board.settle();
    assert_eq!(driver.used_index(), 2);
}

#[test]
fn kick_of_unknown_queue_is_ignored() {
    let (mut board, _driver) = Board::started();
    board.set(reg::QUEUE_NOTIFY, 2);
    board.set(reg::QUEUE_NOTIFY, u32::MAX);
    board.settle();
    assert!(!board.needs_reset());
}

#[test]
fn kick_before_activation_is_served_after_it() {
    let mut board = Board::new();
    board.negotiate(F_VERSION_1);
    let mut driver = board.set_up_queue(0, 16);
    driver.add(&[Buffer::Writable(4)]);
    board.set(reg::QUEUE_NOTIFY, 0);
    board.settle();
    assert_eq!(driver.used_index(), 0);
    board.start();
    board.settle();
    assert_eq!(driver.used_index(), 1);
}

#[test]
fn broken_ring_needs_reset_and_device_comes_back() {
    let (mut board, mut driver) = Board::started();
    driver.set_available_index(100);
    board.set(reg::QUEUE_NOTIFY, 0);
    board.settle();
    assert!(board.needs_reset());
    assert!(!board.transport.is_running());
    assert_eq!(board.seen().last().unwrap(), "reset");
    assert_eq!(board.transport.mount().failures(), 1);

    board.set(reg::STATUS, 0);
    driver.set_available_index(0);
    board.negotiate(F_VERSION_1);
    let mut driver = board.set_up_queue(0, 16);
    driver.set_available_index(0);
    board.start();
    driver.add(&[Buffer::Writable(4)]);
    board.set(reg::QUEUE_NOTIFY, 0);
    board.settle();
    assert!(board.transport.is_running());
    assert_eq!(driver.used_index(), 1);
}

#[test]
fn access_of_wrong_width_or_alignment_does_nothing() {
    let board = Board::new();
    board.transport.write(reg::STATUS, &[1]);
    board.transport.write(reg::STATUS, &[1; 8]);
    board.set(reg::STATUS + 1, 1);
    assert_eq!(board.get(reg::STATUS), 0);
    let mut data = [0xff; 8];
    board.transport.read(reg::MAGIC_VALUE, &mut data);
    assert_eq!(data, [0; 8]);
    assert_eq!(board.get(u64::MAX - reg::CONFIG), 0);
}

#[test]
fn shared_memory_regions_are_absent() {
    let board = Board::new();
    board.set(reg::SHM_SEL, 0);
    assert_eq!(board.get(reg::SHM_LEN_LOW), u32::MAX);
    assert_eq!(board.get(reg::SHM_LEN_LOW + 4), u32::MAX);
}

#[test]
fn configuration_space_is_reached_with_any_width() {
    let board = Board::new();
    let mut data = [0; 2];
    board.transport.read(reg::CONFIG + 1, &mut data);
    assert_eq!(&data, b"bc");
    board.transport.write(reg::CONFIG, b"z");
    assert_eq!(board.get(reg::CONFIG), u32::from_le_bytes(*b"zbcd"));
    assert_eq!(board.get(u64::MAX), 0);
}

#[test]
fn state_moves_to_another_board_and_goes_on() {
    let (mut board, mut driver) = Board::started();
    driver.add(&[Buffer::Writable(4)]);
    board.set(reg::QUEUE_NOTIFY, 0);
    board.settle();
    driver.add(&[Buffer::Writable(4)]);
    board.transport.write(reg::CONFIG, b"z");
    board.transport.mount().pause().unwrap();
    let state = board.transport.save().unwrap();
    let bytes = postcard::to_stdvec(&state).unwrap();

    let mut other = Board::with_memory(board.memory.clone());
    other
        .transport
        .restore(&postcard::from_bytes(&bytes).unwrap())
        .unwrap();
    other.settle();

    assert_eq!(driver.used_index(), 2);
    assert_eq!(other.get(reg::STATUS), 15);
    assert_eq!(other.get(reg::CONFIG), u32::from_le_bytes(*b"zbcd"));
    assert!(other.line.edges() >= 1);
}

#[test]
fn state_of_another_device_is_rejected() {
    let board = Board::new();
    let mut state = board.transport.save().unwrap();
    state.device.device_type = 1;
    assert!(matches!(
        Board::new().transport.restore(&state),
        Err(MmioRestoreError::State(StateError::Device {
            expected: 42,
            found: 1
        }))
    ));
}

#[test]
fn state_with_queue_outside_memory_is_rejected() {
    let (board, _driver) = Board::started();
    board.transport.mount().pause().unwrap();
    let mut state = board.transport.save().unwrap();
    state.queues[0].config.used = u64::MAX - 3;
    assert!(matches!(
        Board::new().transport.restore(&state),
        Err(MmioRestoreError::Activate(ActivateError::Queue(_)))
    ));
}

#[test]
fn worker_pauses_resumes_and_joins() {
    let worker = Worker::spawn("test-devices").unwrap();
    let seen = Arc::default();
    let echo = Echo {
        seen: Arc::clone(&seen),
        active: None,
        config: [0; 4],
    };
    let mount = worker.handle().add(Box::new(echo)).unwrap();
    let memory = guest_memory(16);
    let line = Arc::new(CountingLine::default());
    let transport = MmioTransport::new(mount, memory.clone(), line);
    let board = Board {
        transport,
        seen,
        memory,
        ..Board::new()
    };
    board.negotiate(F_VERSION_1);
    let mut driver = board.set_up_queue(0, 16);
    board.start();

    worker.pause().unwrap();
    driver.add(&[Buffer::Writable(4)]);
    board.set(reg::QUEUE_NOTIFY, 0);
    assert_eq!(driver.used_index(), 0);
    worker.resume();
    worker.pause().unwrap();
    worker.resume();
    worker.stop().unwrap();

    let seen = board.seen();
    assert_eq!(
        seen[1..],
        ["pause", "resume", "pause", "resume", "reset"].map(String::from)[..]
    );
}

#[test]
fn loop_dropped_lets_devices_go() {
    let board = Board::new();
    let weak = Arc::downgrade(board.transport.mount());
    drop(board);
    assert!(weak.upgrade().is_none());
}
