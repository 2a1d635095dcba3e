//! What a hostile driver does, told by a fuzzer's bytes. Each function takes any bytes and comes back; a fuzz target and a
//! test that replays seeds call the same.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use vm_memory::GuestAddressSpace;

use super::{Buffer, CountingLine, DriverQueue, Harness, guest_memory};
use crate::balloon::Balloon;
use crate::block::backend::RawDisk;
use crate::block::image::{Qcow2Header, probe};
use crate::block::{Block, BlockOptions, EngineKind};
use crate::fs::{Fs, FsOptions};
use crate::mmio::MmioTransport;
use crate::queue::{Cursor, F_VERSION_1};
use crate::vsock::{ControlPorts, ControlSocket, ToDevice, Vsock};
use crate::{GuestRam, InterruptLine, Reactor, VirtioDevice, Virtqueue};

/// Most steps of one run.
const STEPS: usize = 64;
/// Longest buffer that a run offers.
const LONGEST: u32 = 8192;

/// Bytes that are used up from the front; zeros behind their end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number<const N: usize>(&mut self) -> u64 {
        let mut raw = [0; 8];
        let bytes = self.take(N);
        raw[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(raw)
    }

    fn byte(&mut self) -> u8 {
        self.number::<1>() as u8
    }
}

/// Plays a script against a device: chains of all shapes, descriptors and indices of any value, kicks, resets.
///
/// A step is a byte: its low three bits say what is done, the others to which queue.
fn play(device: impl VirtioDevice + 'static, bytes: &[u8]) {
    let mut harness = Harness::started(device);
    let mut script = Script(bytes);
    for _ in 0..STEPS {
        if script.is_over() {
            break;
        }
        step(&mut harness, &mut script);
    }
    // It must come back to life, whatever was done to it.
    harness.mount.reset();
    harness.settle();
}

fn step(harness: &mut Harness, script: &mut Script<'_>) {
    let what = script.byte();
    let index = usize::from(what >> 3) % harness.queues.len();
    let queue = &mut harness.queues[index];
    match what & 7 {
        // A sound chain, whose content is the fuzzer's: what a device's parser sees.
        0..=3 => {
            let mut buffers = Vec::new();
            for _ in 0..1 + script.byte() % 4 {
                let len = script.number::<2>() as u32 % LONGEST;
                buffers.push(if len & 1 == 0 {
                    Buffer::Readable(script.take(len as usize))
                } else {
                    Buffer::Writable(len)
                });
            }
            // Readable ones come first, but for a driver that does not care.
            if what & 7 != 3 {
                buffers.sort_by_key(|buffer| matches!(buffer, Buffer::Writable(_)));
            }
            if queue.free() > buffers.len() {
                if what & 1 == 0 {
                    queue.add(&buffers);
                } else {
                    queue.add_indirect(&buffers);
                }
            }
        }
        // A descriptor of any content, offered.
        4 => {
            let head = script.number::<1>() as u16;
            let (address, len) = (script.number::<4>(), script.number::<4>() as u32);
            let (flags, next) = (script.number::<1>() as u16, script.number::<2>() as u16);
            queue.set_descriptor(head, address, len, flags, next);
            queue.offer(head);
        }
        // Any head.
        5 => queue.offer(script.number::<2>() as u16),
        // Any index.
        6 => queue.set_available_index(script.number::<2>() as u16),
        _ => {
            if script.byte() & 1 == 0 {
                harness.mount.reset();
                // A driver that is refused tries again later.
                let _refused = harness.activate();
            } else {
                let mut config = [0; 8];
                let at = script.number::<2>();
                harness.mount.read_config(at, &mut config);
                harness
                    .mount
                    .write_config(at, &script.number::<4>().to_le_bytes());
            }
        }
    }
    harness.kick(index as u16);
}

/// A queue by itself: rings of small size whose every byte is the fuzzer's, features at will, and the device's side
/// called in any order. What comes out has to be within memory, and within bounds.
pub fn queue(bytes: &[u8]) {
    const SIZE: u16 = 8;
    let memory = guest_memory(1);
    let driver = DriverQueue::new(&memory, 0, SIZE);
    let config = driver.config();
    let mut script = Script(bytes);
    let features = script.number::<8>();
    let ram = memory.memory();
    let Ok(mut queue) = Virtqueue::new(0, config, SIZE, features | F_VERSION_1, &ram) else {
        return;
    };
    driver.write(config.descriptors, script.take(usize::from(SIZE) * 16));
    // Indirect tables that point into the buffers behind the rings have content, too.
    let table = driver.config().used + 0x1000;
    for _ in 0..STEPS {
        if script.is_over() {
            break;
        }
        match script.byte() % 8 {
            0 => driver.write(config.available, script.take(6 + 2 * usize::from(SIZE))),
            1 => driver.write(config.descriptors, script.take(32)),
            2 => driver.write(table, script.take(64)),
            3 => queue.set_position(script.number::<2>() as u16, script.number::<2>() as u16),
            4 => {
                let (head, len) = (script.number::<2>() as u16, script.number::<4>() as u32);
                let _refused = queue.push(&ram, head, len);
            }
            5 => {
                let _wrong = queue.needs_notification(&ram);
                let _wrong = queue.has_available(&ram);
            }
            6 => {
                let _wrong = queue.disable_kicks(&ram);
                let _wrong = queue.enable_kicks(&ram);
            }
            _ => drain(&mut queue, &ram),
        }
    }
}

/// Takes what is offered, a ring's full at most: writing to a buffer that lies on the ring can offer more for ever, as
/// can a driver that goes on meanwhile. It is the devices that have budgets.
fn drain(queue: &mut Virtqueue, ram: &GuestRam) {
    for _ in 0..queue.size() {
        let Ok(Some(chain)) = queue.pop(ram) else {
            break;
        };
        let segments = chain.readable().iter().chain(chain.writable());
        let len: u64 = segments.map(|segment| u64::from(segment.len)).sum();
        assert_eq!(
            len,
            u64::from(chain.readable_len()) + u64::from(chain.writable_len())
        );
        let mut buffer = vec![0; 64];
        let _short = Cursor::new(chain.readable()).read_exact(ram, &mut buffer);
        let _short = Cursor::new(chain.writable()).write_all(ram, &buffer);
        let _refused = queue.push(ram, chain.head(), chain.writable_len());
    }
}

/// A disk.
pub fn block(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(&[7; 64 << 10]).expect("a disk");
    let backend = RawDisk::new(file, false).expect("a disk");
    let options = BlockOptions {
        engine: EngineKind::Threads,
        threads: 1,
        ..BlockOptions::default()
    };
    let (block, _) = Block::new(Arc::new(backend), options).expect("options");
    play(block, bytes);
}

/// A share.
pub fn fs(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let shared = folder.path().join("shared");
    std::fs::create_dir(&shared).expect("a share");
    std::fs::write(shared.join("file"), "inside").expect("a file");
    std::fs::write(folder.path().join("secret"), "outside").expect("a file");
    let root = FsOptions::open_directory(&shared).expect("a share");
    play(Fs::new(root, FsOptions::new("t")).expect("a device"), bytes);
    let outside = std::fs::read_dir(folder.path()).expect("a folder").count();
    assert_eq!(outside, 2, "something was made outside the share");
    let secret = std::fs::read(folder.path().join("secret")).expect("a file");
    assert_eq!(secret, b"outside");
}

/// A socket device, with somebody who listens and somebody who calls.
pub fn vsock(bytes: &[u8]) {
    let (host, device) = ControlSocket::pair().expect("a pair");
    let listen = ToDevice::Listen { port: 1 };
    host.send(&listen, None).expect("room");
    let ports = Box::new(ControlPorts::new(device));
    play(Vsock::new(3, ports).expect("an address"), bytes);
}

/// A balloon.
pub fn balloon(bytes: &[u8]) {
    let (balloon, handle) = Balloon::new().expect("a descriptor");
    handle.request_statistics();
    play(balloon, bytes);
}

/// The registers of a device's window, read and written at any place in any width.
pub fn mmio(bytes: &[u8]) {
    let reactor = &mut Reactor::new().expect("an event loop");
    let (balloon, _) = Balloon::new().expect("a descriptor");
    let mount = reactor.handle().add(Box::new(balloon)).expect("kicks");
    let line: Arc<dyn InterruptLine> = Arc::new(CountingLine::default());
    let transport = MmioTransport::new(mount, guest_memory(1), line);
    let mut script = Script(bytes);
    while !script.is_over() {
        let what = script.byte();
        // All registers and some of the configuration space.
        let offset = script.number::<2>() % 0x120;
        let width = [4, 4, 4, 8, 2, 1, 3, 16][usize::from(what >> 1 & 7)];
        if what & 1 == 0 {
            let mut value = [0; 16];
            let given = script.take(width);
            value[..given.len()].copy_from_slice(given);
            transport.write(offset, &value[..width]);
        } else {
            transport.read(offset, &mut [0; 16][..width]);
        }
        let _nothing = reactor.turn(Some(std::time::Duration::ZERO));
    }
}

/// The header of a disk image.
pub fn qcow2_header(bytes: &[u8]) {
    let _other_format = probe(bytes);
    if let Ok(header) = Qcow2Header::parse(bytes) {
        assert!(header.backing.is_none_or(|name| name.len() <= 1023));
    }
}

/// An image as a whole: opened as a disk, and read.
pub fn qcow2_image(bytes: &[u8]) {
    use crate::block::image::{DiskAccess, DiskSource, ImageFormat};
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("image");
    File::create(&path)
        .and_then(|mut file| file.write_all(bytes))
        .expect("a file");
    let source = DiskSource {
        path,
        format: Some(ImageFormat::Qcow2),
        access: DiskAccess::ReadOnly,
        allow_backing: false,
    };
    if let Ok(opened) = source.open() {
        let (plan, files) = opened.into_parts();
        let _broken = crate::block::image::OpenDisk::backend_from_parts(plan, files);
    }
}
