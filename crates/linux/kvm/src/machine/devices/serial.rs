//! COM1: a UART between the guest and a host socket.
//!
//! No byte is lost in either direction. Output that the host does not take piles up to
//! [`OUTPUT_LIMIT`]; beyond it, the vCPU that wrote waits, outside the guest and in a way that a
//! pause or the end of the machine interrupts. Input is read from the socket only as far as the
//! receiver has room.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use capsa_virtio::InterruptLine;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::bus::BusDevice;
use super::uart::{RECEIVER_ROOM, Uart, Written};
use crate::machine::control::{Control, Phase};
use crate::machine::panic_watch::PanicStream;

/// Output held for a host that does not read, in bytes.
pub const OUTPUT_LIMIT: usize = 4096;
/// The serial thread's stack in bytes: it calls nothing deep.
const STACK: usize = 64 << 10;
const WAKE: u64 = 0;
const SOCKET: u64 = 1;

/// The serial port.
pub struct Serial {
    inner: Mutex<Inner>,
    /// Signalled when the output is within its limit again, and on changes of phase.
    drained: Condvar,
    over_full: AtomicBool,
    stop: AtomicBool,
    line: Arc<dyn InterruptLine>,
    socket: OwnedFd,
    epoll: OwnedFd,
    wake: OwnedFd,
}

struct Inner {
    uart: Uart,
    output: VecDeque<u8>,
    panics: PanicStream,
    /// The serial thread has been asked to write the output.
    flush_asked: bool,
    /// The socket did not take all output.
    blocked: bool,
    /// The other side has not closed its sending half.
    input_open: bool,
    /// The other side still receives.
    output_open: bool,
    watched: EventFlags,
}

impl Serial {
    /// A port on `socket`, a connected stream socket.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn new(
        socket: OwnedFd,
        line: Arc<dyn InterruptLine>,
        panics: PanicStream,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)?;
        let serial = Self {
            inner: Mutex::new(Inner {
                uart: Uart::default(),
                output: VecDeque::new(),
                panics,
                flush_asked: false,
                blocked: false,
                input_open: true,
                output_open: true,
                watched: EventFlags::empty(),
            }),
            drained: Condvar::new(),
            over_full: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            line,
            socket,
            epoll,
            wake,
        };
        serial.watch(&mut serial.lock())?;
        Ok(serial)
    }

    /// Whether a vCPU must [wait](Self::wait_for_room) before it enters the guest again.
    pub fn is_over_full(&self) -> bool {
        self.over_full.load(Ordering::Acquire)
    }

    /// Waits until the host has taken enough output, or the machine is no longer running.
    pub fn wait_for_room(&self, control: &Control) {
        let mut inner = self.lock();
        while self.is_over_full() && control.phase() == Phase::Running {
            inner = self.wait(inner);
        }
    }

    /// Waits until the host has taken all output or closed its end.
    pub fn wait_until_drained(&self) {
        let mut inner = self.lock();
        self.flush(&mut inner);
        while !inner.output.is_empty() && !self.stop.load(Ordering::Acquire) {
            inner = self.wait(inner);
        }
    }

    /// Makes everybody who waits look at the machine's phase.
    pub fn interrupt_waits(&self) {
        let _inner = self.lock();
        self.drained.notify_all();
    }

    fn signal(&self) {
        // It fails only when the counter is full, and then the thread is being woken anyhow.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Writes what the socket takes.
    fn flush(&self, inner: &mut Inner) {
        inner.flush_asked = false;
        inner.blocked = false;
        while !inner.output.is_empty() {
            let (first, _) = inner.output.as_slices();
            match rustix::net::send(
                &self.socket,
                first,
                SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            ) {
                Ok(sent) => drop(inner.output.drain(..sent)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    inner.blocked = true;
                    break;
                }
                // Nobody reads any more: the guest goes on without a console.
                Err(_) => {
                    inner.output_open = false;
                    inner.output.clear();
                }
            }
        }
        let over_full = inner.output.len() > OUTPUT_LIMIT;
        if self.over_full.swap(over_full, Ordering::AcqRel) || inner.output.is_empty() {
            self.drained.notify_all();
        }
        self.rewatch(inner);
    }

    /// Reads from the socket what the receiver has room for.
    fn fill(&self, inner: &mut Inner) {
        let mut buffer = [MaybeUninit::<u8>::uninit(); RECEIVER_ROOM];
        while inner.input_open && inner.uart.room() > 0 {
            let room = inner.uart.room();
            let Some(free) = buffer.get_mut(..room) else {
                break;
            };
            match rustix::net::recv(&self.socket, free, RecvFlags::DONTWAIT) {
                Ok(((bytes, _), count)) if count > 0 => inner.uart.receive(bytes),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // The end of the stream, or no other side.
                Ok(_) | Err(_) => inner.input_open = false,
            }
        }
        self.rewatch(inner);
    }

    fn rewatch(&self, inner: &mut Inner) {
        if let Err(error) = self.watch(inner) {
            tracing::error!(%error, "the serial port's socket cannot be watched");
        }
    }

    /// Watches the socket for what there is to do. A socket with nothing to wait for is not in the
    /// set at all: its hang-up would wake the thread without end.
    fn watch(&self, inner: &mut Inner) -> io::Result<()> {
        let mut wanted = EventFlags::empty();
        if inner.input_open && inner.uart.room() > 0 {
            wanted |= EventFlags::IN;
        }
        if inner.blocked {
            wanted |= EventFlags::OUT;
        }
        let watched = inner.watched;
        if wanted == watched {
            return Ok(());
        }
        let data = EventData::new_u64(SOCKET);
        if watched.is_empty() {
            epoll::add(&self.epoll, &self.socket, data, wanted)?;
        } else if wanted.is_empty() {
            epoll::delete(&self.epoll, &self.socket)?;
        } else {
            epoll::modify(&self.epoll, &self.socket, data, wanted)?;
        }
        inner.watched = wanted;
        Ok(())
    }

    fn raise(&self, inner: &mut Inner) {
        if inner.uart.raised()
            && let Err(error) = self.line.trigger()
        {
            tracing::warn!(%error, "the serial port's interrupt was lost");
        }
    }

    fn transmit(&self, inner: &mut Inner, byte: u8) {
        inner.panics.feed(&[byte]);
        if !inner.output_open {
            return;
        }
        inner.output.push_back(byte);
        if inner.blocked {
            // The serial thread goes on when the socket takes more.
            if inner.output.len() > OUTPUT_LIMIT {
                self.over_full.store(true, Ordering::Release);
            }
        } else if byte == b'\n' || inner.output.len() >= OUTPUT_LIMIT {
            self.flush(inner);
        } else if !inner.flush_asked {
            // Not byte by byte: the thread writes whatever has come together when it gets to run.
            inner.flush_asked = true;
            self.signal();
        }
    }

    fn turn(&self) -> io::Result<()> {
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 2];
        let events = match epoll::wait(&self.epoll, &mut events[..], None) {
            Ok((events, _)) => &*events,
            Err(Errno::INTR) => &[],
            Err(errno) => return Err(errno.into()),
        };
        let mut inner = self.lock();
        for event in events {
            let flags = event.flags;
            if event.data.u64() == WAKE {
                let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
            } else if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                self.fill(&mut inner);
                self.raise(&mut inner);
            }
        }
        self.flush(&mut inner);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.drained
            .wait(guard)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u16, data: &mut [u8]) {
        let mut inner = self.lock();
        let mut emptied = false;
        for byte in data {
            let (value, now_empty) = inner.uart.read(offset);
            *byte = value;
            emptied |= now_empty;
        }
        if emptied {
            // Input that waits in the socket makes the thread run.
            self.rewatch(&mut inner);
        }
        self.raise(&mut inner);
    }

    fn write(&self, offset: u16, data: &[u8]) {
        let mut inner = self.lock();
        for value in data {
            match inner.uart.write(offset, *value) {
                Written::Byte(byte) => self.transmit(&mut inner, byte),
                // Leaving loop mode or clearing the receiver makes room.
                Written::Nothing => self.rewatch(&mut inner),
            }
        }
        self.raise(&mut inner);
    }
}

/// The thread that moves bytes between port and socket. Dropping it ends and joins it, after what
/// the socket takes at once has been written.
pub struct SerialThread {
    serial: Arc<Serial>,
    thread: Option<JoinHandle<()>>,
}

impl SerialThread {
    /// Starts the thread; `prepare` runs on it first (to install its seccomp filter).
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn spawn(
        serial: Arc<Serial>,
        prepare: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let theirs = Arc::clone(&serial);
        let thread = std::thread::Builder::new()
            .name("serial".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let result = prepare().and_then(|()| {
                    while !theirs.stop.load(Ordering::Acquire) {
                        theirs.turn()?;
                    }
                    Ok(())
                });
                if let Err(error) = result {
                    tracing::error!(%error, "the serial port's thread ended");
                }
            })?;
        Ok(Self {
            serial,
            thread: Some(thread),
        })
    }
}

impl Drop for SerialThread {
    fn drop(&mut self) {
        self.serial.stop.store(true, Ordering::Release);
        self.serial.interrupt_waits();
        self.serial.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the serial port's thread panicked");
        }
        let mut inner = self.serial.lock();
        self.serial.flush(&mut inner);
    }
}

#[cfg(test)]
#[path = "serial_tests.rs"]
mod tests;
